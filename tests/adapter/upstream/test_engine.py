"""The llama.cpp dialect against llama.cpp itself, beside the same model under transformers."""

import asyncio
import json
import random
import re
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Iterator
from contextlib import aclosing

import httpx
import pytest

from adapter.candidates import END, Position
from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import ContextTooLong, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream import Endpoint, Upstream, connect
from tests.adapter.upstream.test_stream import total
from tests.adapter.upstream.vocabularies import BYTES, Allowed
from tests.support.model_server import ModelServer, model_server
from tests.support.tiny import tiny
from tokenizer_maps.vocabulary import Vocabulary

pytestmark = pytest.mark.engine

CLOSE = 2e-5
"""Nats between the engine and transformers, both float32; measured 6e-6 at worst."""


@pytest.fixture(scope="module")
def truth() -> Iterator[ModelServer]:
    with model_server(tiny().upstream) as server:
        yield server


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(tiny().gguf, EngineOptions(context=256, slots=2, threads=1)) as engine:
        yield engine


@pytest.fixture
def one_slot() -> Iterator[Engine]:
    """With two, a request may come before the warm slot is free, and be read anew in the other."""
    with Engine(tiny().gguf, EngineOptions(context=256, slots=1, threads=1)) as engine:
        yield engine


@pytest.fixture
async def upstream(engine: Engine, vocabulary: Vocabulary) -> AsyncIterator[Upstream]:
    upstream = wire(engine, vocabulary)
    yield upstream
    await upstream.close()


def wire(engine: Engine, vocabulary: Vocabulary, k: int = 10_000) -> Upstream:
    endpoint = Endpoint(engine.base_url, "demo")
    return connect(endpoint, api="llama.cpp", vocabulary=vocabulary, top_logprobs=k)


def prefixes(count: int, size: int) -> list[Prefix]:
    """Random prompts: many end inside a character, and so do many of the tokens after them."""
    draw = random.Random(3)
    return [Prefix.of(draw.choices(range(2, size), k=draw.randint(1, 40))) for _ in range(count)]


def check(position: Position, prefix: Prefix, truth: ModelServer) -> None:
    """The whole vocabulary is there, with the model's own log-probabilities."""
    expected = truth.logprobs(list(prefix.ids)).tolist()
    shown = {c.id: c.logprob for c in position.candidates}
    assert shown == pytest.approx(dict(enumerate(expected)), abs=CLOSE)
    assert position.hidden < 1e-4


async def test_one_position_is_the_models_own(
    upstream: Upstream, truth: ModelServer, vocabulary: Vocabulary
) -> None:
    partial = 0
    for prefix in prefixes(30, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 1, Allowed())
        (position,) = draft.positions
        check(position, prefix, truth)
        assert (position.drafted, draft.finish_reason, draft.usage.calls) == (None, None, 1)
        partial += position.candidates[0].token[-1:] >= b"\xc2"
    assert partial >= 3, "no prompt whose best token ends inside a character: a weak test"


async def test_every_position_of_a_run_is_the_models_own(
    upstream: Upstream, truth: ModelServer, vocabulary: Vocabulary
) -> None:
    lengths, calls = [], 0
    for prefix in prefixes(40, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 8, Allowed())
        calls += draft.usage.calls
        lengths.append(len(draft.positions))
        at = prefix
        for position in draft.positions:
            check(position, at, truth)
            if position.drafted is not None:
                assert position.drafted == position.candidates[0]
                at = at.extend(position.drafted)
    assert 8 in lengths
    assert min(lengths) >= 1
    assert calls > 40, "no first position was lost: a weak test"


async def test_end_is_shown_and_drafted(upstream: Upstream, vocabulary: Vocabulary) -> None:
    for prefix in prefixes(80, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 16, Allowed())
        if draft.finish_reason == "stop":
            last = draft.positions[-1]
            assert last.drafted is not None
            assert (last.drafted.special, last.drafted.id) == (END, 0)
            return
    pytest.fail("no text ended: a weak test")


async def test_the_forced_token_changes_no_logprob(
    engine: Engine, upstream: Upstream, vocabulary: Vocabulary
) -> None:
    for prefix in prefixes(10, len(vocabulary.tokens)):
        forced = await upstream.draft(prefix, 1, Allowed())
        free = await upstream.draft(prefix, 2, Allowed())
        if free.positions[0].drafted is not None:
            by_id = {c.id: c.logprob for c in forced.positions[0].candidates}
            assert by_id == pytest.approx(
                {c.id: c.logprob for c in free.positions[0].candidates}, abs=CLOSE
            )


async def test_top_k_is_the_head_of_the_whole(
    engine: Engine, upstream: Upstream, vocabulary: Vocabulary
) -> None:
    top = wire(engine, vocabulary, 5)
    for prefix in prefixes(5, len(vocabulary.tokens)):
        few = (await top.draft(prefix, 1, Allowed())).positions[0]
        all_of_it = (await upstream.draft(prefix, 1, Allowed())).positions[0]
        assert [c.id for c in few.candidates] == [c.id for c in all_of_it.candidates[:5]]
        assert few.hidden > all_of_it.hidden
    await top.close()


async def test_a_streamed_run_is_the_run(one_slot: Engine, vocabulary: Vocabulary) -> None:
    partial, lengths, single = 0, set(), 0
    for prefix in prefixes(40, len(vocabulary.tokens)):
        # Of its own: the engine ends a connection after 100 requests, and a retry is a call more.
        upstream = wire(one_slot, vocabulary)
        await upstream.draft(prefix, 8, Allowed())  # from here on the prompt is in the cache
        whole = await upstream.draft(prefix, 8, Allowed())
        run = total([piece async for piece in upstream.stream(prefix, 8, Allowed())])
        await upstream.close()
        assert (run.positions, run.finish_reason) == (whole.positions, whole.finish_reason)
        assert run.usage.calls == whole.usage.calls
        if whole.finish_reason is not None:
            assert run.usage == whole.usage
        lengths.add(len(run.positions))
        single += run.usage.calls == 2
        partial += any(p.drafted and p.drafted.token[-1:] > b"\x7f" for p in whole.positions)
    assert {1, 8} <= lengths
    assert single > 2, "no first position was lost: a weak test"
    assert partial > 5, "no multi-byte characters: a weak test"


async def test_pieces_come_one_by_one(upstream: Upstream, vocabulary: Vocabulary) -> None:
    prefix = Prefix.of(vocabulary.encode(b"The harbour"))
    pieces = [piece async for piece in upstream.stream(prefix, 6, Allowed())]
    whole = total(pieces)
    assert [len(p.positions) for p in pieces[: len(whole.positions)]] == [1] * len(whole.positions)
    assert len(whole.positions) > 2
    assert whole.usage.prompt_tokens == len(prefix.ids)


COUNTING = """
import sys
from adapter.demo import engine

quiet = engine._parameters
def counting(*arguments):
    parameters = quiet(*arguments)
    parameters.endpoint_metrics = True
    return parameters
engine._parameters = counting
engine.serve(sys.argv[1], engine.EngineOptions(context=512, slots=1, threads=1))
"""


@pytest.fixture
def counting() -> Iterator[str]:
    """The address of an engine that tells how many tokens it has made."""
    command = [sys.executable, "-c", COUNTING, str(tiny().gguf)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as process:
        assert process.stdout is not None
        address = json.loads(process.stdout.readline())["address"]
        while httpx.get(f"{address}/health").status_code != 200:
            time.sleep(0.02)
        yield address
        process.kill()


def made(address: str) -> int:
    (count,) = re.findall(r"^llamacpp:tokens_predicted_total (\d+)", metrics(address), re.M)
    return int(count)


def metrics(address: str) -> str:
    while "llamacpp:requests_processing 0" not in (told := httpx.get(f"{address}/metrics").text):
        time.sleep(0.02)
    return told


async def test_a_closed_stream_ends_the_engines_work(counting: str, vocabulary: Vocabulary) -> None:
    endpoint = Endpoint(f"{counting}/v1", "demo")
    upstream = connect(endpoint, api="llama.cpp", vocabulary=vocabulary, top_logprobs=400)
    for prefix in prefixes(20, len(vocabulary.tokens)):
        whole = (await upstream.draft(prefix, 400, Allowed())).usage.completion_tokens
        if whole == 400:
            break
    else:
        pytest.fail("every text ends early: a weak test")
    cuts = []
    for _ in range(5):  # the tiny model makes thousands a second: on a busy machine one may be late
        before = made(counting)
        async with aclosing(upstream.stream(prefix, 400, Allowed())) as pieces:
            await anext(pieces)
        # Not here: the loop has to go on for the connection to be closed.
        cuts.append(await asyncio.to_thread(made, counting) - before)
    assert 0 < min(cuts) < whole // 2, cuts
    await upstream.close()


async def test_forced_scores_are_the_whole_vocabularys(
    upstream: Upstream, vocabulary: Vocabulary
) -> None:
    """Left out are exactly the tokens that end inside a character."""
    size, budget = len(vocabulary.tokens), Allowed()
    prefix = Prefix.of(vocabulary.encode("The harbour 東".encode()))
    await upstream.draft(prefix, 1, Allowed())
    (whole,) = (await upstream.draft(prefix, 1, Allowed())).positions
    shown = {c.id: c.logprob for c in whole.candidates}
    scores, usage = await upstream.score(prefix, [*range(size), 5, 10**6], budget)
    assert usage.calls == budget.taken == size
    left_out = {i for i in range(size) if begins_a_character(vocabulary.tokens[i])}
    assert len(left_out) > 10
    assert set(scores) == set(range(size)) - left_out
    assert max(abs(value - shown[i]) for i, value in scores.items()) < 1e-6


def begins_a_character(token: bytes) -> bool:
    """Whether its last bytes wait for more, as the server sees it."""
    leads = ((1, 0xC0), (2, 0xE0), (3, 0xF0))  # so far from the end, at least such a byte
    return any(len(token) >= back and lead <= token[-back] < 0xF8 for back, lead in leads)


async def test_the_prompt_cache_is_used(upstream: Upstream, vocabulary: Vocabulary) -> None:
    prefix = Prefix.of(vocabulary.encode(b"The harbour master kept a ledger of every ship"))
    await upstream.draft(prefix, 1, Allowed())
    again = await upstream.draft(prefix, 1, Allowed())
    assert again.usage.prompt_tokens == len(prefix.ids)
    assert again.usage.cached_tokens == len(prefix.ids) - 1


async def test_another_tokenizer_is_noticed(engine: Engine) -> None:
    wrong = wire(engine, BYTES)
    with pytest.raises(UpstreamMalformed, match="tokenizer is not the upstream's"):
        await wrong.draft(Prefix.of([50, 60]), 1, Allowed())
    await wrong.close()


async def test_a_prompt_too_long_is_said_so(upstream: Upstream) -> None:
    with pytest.raises(ContextTooLong, match="256 tokens"):
        await upstream.draft(Prefix.of([50] * 300), 1, Allowed())
