"""Runs in pieces: the same positions as in one, faults on a real socket, and hanging up."""

import asyncio
import random
from collections.abc import AsyncGenerator, AsyncIterator
from contextlib import aclosing
from itertools import pairwise
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.candidates import Candidate, Draft, Position, Usage
from adapter.errors import (
    BudgetExceeded,
    ContextTooLong,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.prefix import Prefix
from adapter.upstream import Endpoint, Upstream, connect
from adapter.upstream.completions import EVERY, CompletionsRun, read_runs, read_scores
from adapter.upstream.llamacpp import LlamaCppRun
from adapter.upstream.pieces import Run, pieces
from adapter.upstream.tokens import TokenNames
from adapter.upstream.transport import Answer, Transport
from tests.adapter.upstream.test_transport import Naps, endpoint
from tests.adapter.upstream.vocabularies import BYTES, Allowed, sample, thorough, vocabulary_of
from tests.support.model_server import ModelServer
from tests.support.scripted import Reply, Scripted, classic, events, native, scripted
from tokenizer_maps.vocabulary import Vocabulary

NAMES = TokenNames(BYTES)
PREFIX = Prefix.of([5, 6, 7])
PIECE = classic({"token_id:99": -0.1, "token_id:100": -3.0}, text="a", finish="")
LAST = classic({"token_id:100": -0.2, "token_id:99": -3.0}, text="b")
PIECES = [body | {"usage": None} for body in (PIECE, PIECE, LAST)]
SPENT = {"choices": [], "usage": {"prompt_tokens": 4, "completion_tokens": 3}}
WHOLE = events(*PIECES, SPENT)


def total(parts: list[Draft]) -> Draft:
    """The pieces as one draft; checks that only the last tells why the run ended."""
    assert all(part.finish_reason is None for part in parts[:-1])
    positions = tuple(position for part in parts for position in part.positions)
    usage = sum((part.usage for part in parts), Usage())
    return Draft(positions, parts[-1].finish_reason if parts else None, usage)


async def streamed(upstream: Upstream, prefix: Prefix, n: int, budget: Any = None) -> Draft:
    run = upstream.stream(prefix, n, budget or Allowed())
    return total([piece async for piece in run])


def wire(base_url: str, **options: Any) -> Upstream:
    options = {"api": "completions", "vocabulary": BYTES, "top_logprobs": 2} | options
    return connect(endpoint(base_url), **options)


async def taken(script: Scripted, transport: Transport, budget: Allowed) -> list[Answer]:
    """The events up to the error, if there is one, and the error."""
    got: list[Any] = []
    try:
        async for event in transport.stream(PREFIX.ids, {"max_tokens": 3}, budget):
            got.append(event)
    except (UpstreamError, BudgetExceeded, ContextTooLong) as error:
        got.append(error)
    finally:
        await transport.close()
    return got


async def call(
    script: Scripted, budget: Allowed | None = None, limit: float = 30.0, naps: Naps | None = None
) -> list[Any]:
    transport = Transport(endpoint(script.base_url, limit), sleep=Naps() if naps is None else naps)
    return await taken(script, transport, budget or Allowed())


async def test_asks_for_a_stream_with_its_usage() -> None:
    with scripted(WHOLE) as script:
        got = await call(script)
    assert [event.body for event in got] == [*PIECES, SPENT]
    assert [event.calls for event in got] == [1, 0, 0, 0]
    assert script.requests[0] == {
        "model": "hosted-model",
        "prompt": [5, 6, 7],
        "max_tokens": 3,
        "stream": True,
        "stream_options": {"include_usage": True},
    }


async def test_a_stream_read_to_its_end_leaves_its_connection_to_the_next() -> None:
    with scripted(WHOLE) as script:
        upstream = wire(script.base_url)
        for _ in range(3):
            await streamed(upstream, PREFIX, 3)
        assert script.connections == 1
        await upstream.close()


async def test_a_stream_that_is_left_takes_its_connection_along() -> None:
    first = len(events(PIECES[0], done=False).body)
    with scripted(Reply(body=WHOLE.body, headers=WHOLE.headers, stall=first), WHOLE) as script:
        upstream = wire(script.base_url)
        async with aclosing(upstream.stream(PREFIX, 3, Allowed())) as run:
            await anext(run)
        await streamed(upstream, PREFIX, 3)
        assert script.connections == 2
        await upstream.close()


async def test_a_connection_that_ends_behind_a_stream_takes_no_call_along() -> None:
    """As llama.cpp's server does, which does not announce it."""
    ended = Reply(body=WHOLE.body, headers=WHOLE.headers, cut=len(WHOLE.body))
    retried = 0
    with scripted(ended) as script:
        transport = Transport(endpoint(script.base_url), sleep=Naps())
        for _ in range(20):
            async for event in transport.stream(PREFIX.ids, {"max_tokens": 3}, Allowed()):
                retried += max(0, event.calls - 1)
        await transport.close()
    assert retried <= 2  # a busy machine may end it late


@pytest.mark.parametrize("streamed_too", [False, True])
async def test_samples_named_by_their_text_are_asked_for_once_and_never_again(
    streamed_too: bool,
) -> None:
    """What a sample was cannot be told; greedy runs can be read, so those are what is asked for."""
    body = classic({"a": -0.1, "b": -3.0}, text="a")
    reply = events(body) if streamed_too else Reply(body=body)
    with scripted(reply) as script:
        upstream = wire(script.base_url)
        assert upstream.capabilities.rejection
        usage, tokens = Usage(), []
        if streamed_too:
            async with aclosing(upstream.stream(PREFIX, 1, Allowed(), True)) as run:
                drafts = [piece async for piece in run]
        else:
            drafts = [await upstream.draft(PREFIX, 1, Allowed(), True)]
        for draft in drafts:
            usage += draft.usage
            tokens += [p.drafted.token for p in draft.positions if p.drafted]
        await upstream.close()
    assert [request["temperature"] for request in script.requests] == [1, 0]
    assert (tokens, usage.calls) == ([b"a"], 2)
    assert not upstream.capabilities.rejection


async def test_a_server_that_does_not_hang_up_has_said_all() -> None:
    with scripted(Reply(body=WHOLE.body, headers=WHOLE.headers, more=True)) as script:
        got = await call(script)
    assert [event.body for event in got] == [*PIECES, SPENT]


async def test_before_the_first_event_it_is_tried_again_and_every_attempt_counts() -> None:
    overloaded = events({"error": {"message": "x", "code": 503}})
    broken = Reply(body=b"data: {", headers=WHOLE.headers, cut=4)
    budget, naps = Allowed(), Naps()
    with scripted(overloaded, broken, WHOLE) as script:
        got = await call(script, budget, naps=naps)
    assert [event.calls for event in got] == [3, 0, 0, 0]
    assert (script.calls, budget.taken, len(naps)) == (3, 3, 2)


@pytest.mark.parametrize("reply", [Reply(500), events({"error": "x"}), events(done=False)])
async def test_a_lasting_fault_ends_after_three_attempts(reply: Reply) -> None:
    with scripted(reply) as script:
        (error,) = await call(script)
    assert (type(error).__mro__[1], script.calls) == (UpstreamUnavailable, 3)


async def test_attempts_stop_where_the_budget_ends() -> None:
    with scripted(Reply(500)) as script:
        (error,) = await call(script, Allowed(2))
    assert (type(error), script.calls) == (BudgetExceeded, 2)


@pytest.mark.parametrize(
    ("reply", "kind", "said"),
    [
        (Reply(401), UpstreamRefused, "does not accept the key"),
        (
            Reply(sample("vllm", "too_long")["status"], sample("vllm", "too_long")["response"]),
            ContextTooLong,
            "512 tokens",
        ),
        (events({"error": {"message": "secret", "code": 400}}), UpstreamRefused, "answered 400"),
        (Reply(body=LAST), UpstreamMalformed, "does not stream"),
        (events([1]), UpstreamMalformed, "no JSON object"),
    ],
)
async def test_what_is_not_tried_again(reply: Reply, kind: type, said: str) -> None:
    with scripted(reply) as script:
        (error,) = await call(script)
    assert (type(error), script.calls) == (kind, 1)
    assert said in str(error)
    assert "secret" not in str(error)


@pytest.mark.parametrize(
    ("reply", "kind"),
    [
        (events(*PIECES[:2], {"error": {"message": "x", "code": 503}}), UpstreamUnavailable),
        (events(*PIECES[:2], {"error": {"message": "x", "code": 400}}), UpstreamRefused),
        (events(*PIECES[:2], done=False), UpstreamUnavailable),
        (events(*PIECES[:2], 3), UpstreamMalformed),
        (Reply(body=WHOLE.body, headers=WHOLE.headers, cut=len(WHOLE.body) - 9), UpstreamError),
    ],
    ids=["overloaded", "refused", "ended", "no object", "cut"],
)
async def test_after_the_first_event_nothing_is_tried_again(reply: Reply, kind: type) -> None:
    with scripted(reply) as script:
        *got, error = await call(script)
    assert [event.body for event in got[:2]] == PIECES[:2]
    assert isinstance(error, kind)
    assert script.calls == 1


async def test_silence_between_events_ends_at_the_timeout() -> None:
    first = len(events(PIECES[0], done=False).body)
    for stall, seen in ((0, 0), (first, 1)):
        with scripted(Reply(body=WHOLE.body, headers=WHOLE.headers, stall=stall)) as script:
            *got, error = await call(script, limit=0.2)
        assert (type(error), len(got), script.calls) == (UpstreamTimeout, seen, 1)


async def test_all_waits_together_have_an_end(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("adapter.upstream.transport.LONGEST_STREAM", 0)
    first = len(events(PIECES[0], done=False).body)
    with scripted(Reply(body=WHOLE.body, headers=WHOLE.headers, stall=first)) as script:
        transport = Transport(endpoint(script.base_url, 60))
        got = await taken(script, transport, Allowed())
    assert [type(event) for event in got] == [Answer, UpstreamTimeout]


async def test_pieces_come_as_they_are_sent_and_their_usage_adds_up() -> None:
    with scripted(WHOLE) as script:
        upstream = wire(script.base_url)
        pieces = [piece async for piece in upstream.stream(PREFIX, 3, Allowed())]
        await upstream.close()
    assert [len(piece.positions) for piece in pieces] == [1, 1, 1, 0]
    assert [piece.usage for piece in pieces] == [
        Usage(1, 3, 0, 1),
        Usage(0, 0, 0, 1),
        Usage(0, 0, 0, 1),
        Usage(0, 1, 0, 0),
    ]
    assert total(pieces).finish_reason == "length"


async def test_a_run_is_cut_where_it_cannot_be_read_on() -> None:
    nameless = classic({"token_id:9999": -0.1, "token_id:99": -3.0}, finish="")
    with scripted(events(PIECE, nameless, PIECE, LAST)) as script:
        upstream = wire(script.base_url)
        draft = await streamed(upstream, PREFIX, 4)
        await upstream.close()
    assert [p.drafted and p.drafted.token for p in draft.positions] == [b"a", None]
    assert (draft.finish_reason, draft.usage) == (None, Usage(1, 3, 0, 2))


async def test_an_end_that_is_not_shown_is_a_stream_without_positions() -> None:
    with scripted(events(classic(finish="stop"))) as script:
        upstream = wire(script.base_url)
        draft = await streamed(upstream, PREFIX, 4)
        await upstream.close()
    assert (draft.positions, draft.finish_reason) == ((), "stop")


@pytest.mark.parametrize(
    ("bodies", "said"),
    [
        ([], "no token"),
        ([SPENT], "no token"),
        ([{}], "no choices"),
        ([PIECE, {"choices": [{"text": "x", "logprobs": None}]}], "no log-probabilities"),
        ([PIECE, classic({"token_id:99": 2.0, "token_id:100": 1.0})], "mass"),
        ([classic({"token_id:99": -0.1}, text="the")], "tokenizer is not the upstream's"),
    ],
)
async def test_says_what_is_wrong_with_a_stream(bodies: list[Any], said: str) -> None:
    with scripted(events(*bodies)) as script:
        upstream = wire(script.base_url)
        with pytest.raises(UpstreamMalformed, match=said):
            await streamed(upstream, PREFIX, 4)
        await upstream.close()


async def test_what_comes_late_in_a_lost_character_is_asked_for_alone() -> None:
    lost = native([(67, b"A", -0.1)], finish="")
    lost["choices"][0]["logprobs"]["content"][0]["bytes"] = [0xC3, 65]
    alone = Reply(body=native([(99, b"a", -0.1)]))
    budget = Allowed()
    with scripted(events(lost, native([(99, b"a", -0.1)])), alone) as script:
        upstream = wire(script.base_url, api="llama.cpp")
        draft = await streamed(upstream, PREFIX, 4, budget)
        await upstream.close()
    assert [c.token for c in draft.positions[0].candidates] == [b"a"]
    assert (len(draft.positions), draft.finish_reason) == (1, None)
    assert (draft.usage.calls, budget.taken, script.calls) == (2, 2, 2)


async def test_llama_cpp_shows_no_sampled_runs() -> None:
    upstream = wire("http://127.0.0.1:1/v1", api="llama.cpp")
    assert not upstream.capabilities.rejection
    with pytest.raises(ValueError, match="every step"):
        await upstream.draft(PREFIX, 4, Allowed(), sampled=True)
    with pytest.raises(ValueError, match="every step"):
        await anext(upstream.stream(PREFIX, 4, Allowed(), sampled=True))


async def chunked(run: Run, choices: list[Any]) -> Draft:
    """What a run reads from chunks."""

    async def sent() -> AsyncGenerator[Answer, None]:
        for i, choice in enumerate(choices):
            yield Answer({"choices": [choice]}, int(i == 0))
        yield Answer({"choices": [], "usage": {"completion_tokens": count}}, 0)

    count = sum(
        len(c["logprobs"]["tokens" if "tokens" in c["logprobs"] else "content"]) for c in choices
    )
    return total([piece async for piece in pieces(sent(), run, 3)])


ids = st.integers(0, 258)
steps = st.lists(
    st.tuples(ids, st.dictionaries(ids, st.floats(-20, -1.4), min_size=1, max_size=4)),
    min_size=1,
    max_size=7,
)
bounds = st.lists(st.integers(0, 7), max_size=4)


def cuts(count: int, at: list[int]) -> list[tuple[int, int]]:
    within = sorted({0, count, *(min(i, count) for i in at)})
    return list(pairwise(within))


@thorough
@given(steps, bounds, st.sampled_from(["stop", "length"]), st.integers(1, 8))
async def test_chunks_of_any_size_read_as_the_whole(
    run: list[Any], at: list[int], finish: str, n: int
) -> None:
    shown = [
        {f"token_id:{i}": top.get(i, -9.0)} | {f"token_id:{i}": v for i, v in top.items()}
        for i, top in run
    ]
    parts = [classic(*shown[a:b], finish="")["choices"][0] for a, b in cuts(len(shown), at)]
    parts[-1]["finish_reason"] = finish
    try:
        whole = read_runs(classic(*shown, finish=finish), NAMES, 4, n)[0]
    except UpstreamMalformed:  # none of a step's candidates has a name
        with pytest.raises(UpstreamMalformed):
            await chunked(CompletionsRun(NAMES, 4, n, sampled=False), parts)
        return
    draft = await chunked(CompletionsRun(NAMES, 4, n, sampled=False), parts)
    assert (draft.positions, draft.finish_reason) == whole


@thorough
@given(steps, bounds, st.lists(st.booleans(), min_size=7, max_size=7), st.integers(1, 8))
async def test_chunks_of_llama_cpp_read_as_the_whole(
    run: list[Any], at: list[int], lost: list[bool], n: int
) -> None:
    sent = [
        [
            (i, BYTES.tokens[i], v)
            for i, v in [(t % 258, -9.0), *((j % 258, v) for j, v in top.items())]
        ]
        for t, top in run
    ]
    entries = native(*sent)["choices"][0]["logprobs"]["content"]
    for entry, late in zip(entries, lost, strict=False):
        entry["bytes"] = [0xC3] * late + entry["bytes"]
    body = {"choices": [{"logprobs": {"content": entries}, "finish_reason": "length"}]}
    whole = LlamaCppRun(NAMES, n)
    positions = whole.read(body["choices"][0])
    parts: list[Any] = [
        {"logprobs": {"content": entries[a:b]}, "finish_reason": None}
        for a, b in cuts(len(entries), at)
    ]
    parts[-1]["finish_reason"] = "length"
    draft = await chunked(LlamaCppRun(NAMES, n), parts)
    assert (draft.positions, draft.finish_reason) == (positions, whole.finish(len(entries)))


# Recorded from vLLM: a sampled run of eight, whose first and seventh token are none of the top 3.
RECORDED = sample("vllm", "sampled")
WORDS = vocabulary_of({int(i): bytes.fromhex(token) for i, token in RECORDED["tokens"].items()})


def test_a_recorded_sampled_run_shows_the_top_k_alone() -> None:
    positions, finish = read_runs(RECORDED["response"], TokenNames(WORDS), 3, 8, sampled=True)[0]
    assert (len(positions), finish) == (8, "length")
    assert {len(p.candidates) for p in positions} == {3}
    assert [p.drafted in p.candidates for p in positions] == [False, *[True] * 5, False, True]
    assert all(p.floor == p.candidates[-1].logprob for p in positions)
    assert all(p.drafted.logprob < p.floor for p in (positions[0], positions[6]) if p.drafted)


def test_counting_the_sampled_token_as_a_candidate_would_be_seen() -> None:
    """The canary: with k = 4 the appended tokens pass as candidates, and only where sampled."""
    positions, _ = read_runs(RECORDED["response"], TokenNames(WORDS), 4, 8, sampled=True)[0]
    assert [len(p.candidates) for p in positions] == [4, 3, 3, 3, 3, 3, 4, 3]


async def test_a_recorded_stream_is_the_recorded_run() -> None:
    recorded = sample("vllm", "sampled_stream")
    expected = read_runs(RECORDED["response"], TokenNames(WORDS), 3, 8)[0]
    body = recorded["response"].encode()
    with scripted(Reply(body=body, headers=WHOLE.headers)) as script:
        upstream = wire(script.base_url, vocabulary=WORDS, top_logprobs=3)
        pieces = [p async for p in upstream.stream(PREFIX, 8, Allowed(), sampled=True)]
        await upstream.close()
    assert [len(piece.positions) for piece in pieces] == [1] * 8 + [0]
    assert (total(pieces).positions, total(pieces).finish_reason) == expected
    assert total(pieces).usage.prompt_tokens == len(recorded["request"]["prompt"])
    assert script.requests[0]["temperature"] == 1


def test_recorded_scores() -> None:
    body = sample("vllm", "scores")["response"]
    assert read_scores(body, [900, 300, 0, 7]) == {
        900: -20.486370086669922,
        300: -20.3883056640625,
        0: -9.831317901611328,
    }


@pytest.fixture
async def model(server: ModelServer, vocabulary: Vocabulary) -> AsyncIterator[Upstream]:
    upstream = connect(
        Endpoint(server.base_url, "tiny"),
        api="completions",
        vocabulary=vocabulary,
        top_logprobs=5,
    )
    yield upstream
    await upstream.close()


def prefixes(count: int) -> list[Prefix]:
    draw = random.Random(5)
    return [Prefix.of(draw.choices(range(2, 400), k=draw.randint(1, 20))) for _ in range(count)]


async def test_a_streamed_run_is_the_run(model: Upstream) -> None:
    partial, finishes = 0, set()
    for prefix in prefixes(25):
        whole = await model.draft(prefix, 12, Allowed())
        assert await streamed(model, prefix, 12) == whole
        finishes.add(whole.finish_reason)
        partial += any(p.drafted and not whole_text(p.drafted) for p in whole.positions)
    assert finishes == {"stop", "length"}
    assert partial > 5, "too few parts of characters: a weak test"


def whole_text(token: Candidate) -> bool:
    return "\ufffd" not in token.token.decode(errors="replace")


async def test_a_sampled_run_is_drawn_from_what_is_shown(
    model: Upstream, server: ModelServer
) -> None:
    server.requests.clear()
    outside = 0
    runs: set[tuple[Any, ...]] = set()
    for _ in range(12):
        draft = await model.draft(PREFIX, 6, Allowed(), sampled=True)
        at = PREFIX
        for position in draft.positions:
            check(position, server.logprobs(list(at.ids)).tolist())
            assert position.drafted is not None
            outside += position.drafted not in position.candidates
            at = at.extend(position.drafted)
        runs.add(at.generated)
    assert len(runs) > 6
    assert outside > 3
    assert all(r["temperature"] == r["top_p"] == 1 and r["top_k"] == EVERY for r in server.requests)


def check(position: Position, truth: list[float]) -> None:
    """The five best and no more, with the model's own log-probabilities."""
    best = sorted(truth, reverse=True)[:5]
    assert [c.logprob for c in position.candidates] == pytest.approx(best, abs=1e-12)
    assert position.floor == position.candidates[-1].logprob
    assert position.drafted is not None
    assert position.drafted.logprob == pytest.approx(truth[position.drafted.id or 0], abs=1e-12)


async def test_scores_are_the_whole_vocabularys(
    model: Upstream, server: ModelServer, vocabulary: Vocabulary
) -> None:
    budget, size = Allowed(), len(vocabulary.tokens)
    scores, usage = await model.score(PREFIX, [*range(size), 3, -1, 10**6], budget)
    truth = server.logprobs(list(PREFIX.ids)).tolist()
    assert scores == pytest.approx(dict(enumerate(truth)), abs=1e-12)
    assert usage.calls == budget.taken == -(-size // 128)


async def test_scoring_nothing_costs_nothing(model: Upstream) -> None:
    budget = Allowed()
    assert await model.score(PREFIX, [10**6], budget) == ({}, Usage())
    assert budget.taken == 0


async def test_closing_a_stream_hangs_up(server: ModelServer, model: Upstream) -> None:
    server.hold = 2
    server.cut.clear()
    try:
        async with aclosing(model.stream(PREFIX, 40, Allowed(), sampled=True)) as pieces:
            first = await anext(pieces)
            assert len(first.positions) == 1
            assert not server.cut.is_set()
        assert await asyncio.to_thread(server.cut.wait, 10)
    finally:
        server.hold = None
    assert (await model.draft(PREFIX, 2, Allowed())).positions


async def test_a_cancelled_reader_hangs_up(server: ModelServer, model: Upstream) -> None:
    server.hold = 1
    server.cut.clear()
    got = asyncio.Event()

    async def read() -> None:
        async for _ in model.stream(PREFIX, 40, Allowed()):
            got.set()

    try:
        reading = asyncio.create_task(read())
        await asyncio.wait_for(got.wait(), 10)
        reading.cancel()
        with pytest.raises(asyncio.CancelledError):
            await reading
        assert await asyncio.to_thread(server.cut.wait, 10)
    finally:
        server.hold = None
