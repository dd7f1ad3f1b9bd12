"""The completions dialect: recorded answers of vLLM and its kin, and a real model behind it."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.candidates import END, Position
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream import Endpoint, connect
from adapter.upstream.completions import EVERY, read_runs, read_text
from adapter.upstream.tokens import TokenNames
from tests.adapter.upstream.vocabularies import BYTES, Allowed, sample, thorough, vocabulary_of
from tests.support.model_server import model_server
from tests.support.scripted import classic
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

NAMES = TokenNames(BYTES)
TINY = vocabulary_of(
    {
        345: b" not",
        200: b"\n",
        290: b" in",
        264: b" a",
        337: b" for",
        1317: b"ices",
        305: b" to",
        10: b"*",
        36: b"D",
        88: b"x",
        30: b">",
        9: b")",
        560: b" any",
        700: b" pre",
    }
)


def read(body: Any, k: int = 5, n: int = 8) -> tuple[tuple[Position, ...], str | None]:
    return read_runs(body, NAMES, k, n)[0]


def test_reads_vllm_by_ids() -> None:
    positions, finish = read_runs(sample("vllm", "ids")["response"], TokenNames(TINY), 3, 8)[0]
    assert finish == "length"
    assert [p.drafted.id for p in positions if p.drafted] == [200, 200, 200]
    first = positions[0]
    assert [(c.id, c.token) for c in first.candidates] == [(200, b"\n"), (10, b"*"), (305, b" to")]
    assert first.candidates[0].logprob == -1.9526585340499878
    mass = sum(math.exp(c.logprob) for c in first.candidates)
    assert first.hidden == pytest.approx(1 - mass)


@pytest.mark.parametrize("server", ["vllm", "llamacpp_python"])
def test_reads_keys_of_text(server: str) -> None:
    positions, _ = read_runs(sample(server, "text")["response"], TokenNames(TINY), 5, 8)[0]
    assert [c.id for c in positions[0].candidates] == [345, 200, 290, 264, 337]
    assert positions[0].drafted == positions[0].candidates[0]


def test_by_text_parts_of_characters_cannot_be_told_apart() -> None:
    with pytest.raises(UpstreamMalformed, match="no usable"):
        read_runs(sample("vllm", "collapsed_text")["response"], TokenNames(TINY), 5, 1)


def test_by_id_parts_of_characters_are_all_there() -> None:
    parts = {247: b"\x9d", 230: b"\x8c", 139: b"\xbe", 117: b"\xa7", 124: b"\xae"}
    body = sample("vllm", "collapsed_ids")["response"]
    (position,), _ = read_runs(body, TokenNames(vocabulary_of(parts)), 5, 1)[0]
    # Candidates of equal log-probability come in the order of their ids.
    assert [c.id for c in position.candidates] == [247, 230, 117, 124, 139]


@pytest.mark.parametrize(
    ("server", "token"), [("vllm", 700), ("llamacpp_python", 560)], ids=["vllm", "llamacpp_python"]
)
def test_a_sampled_token_beyond_k_is_drafted_but_no_candidate(server: str, token: int) -> None:
    (position,), _ = read_runs(sample(server, "temperature_2")["response"], TokenNames(TINY), 5, 1)[
        0
    ]
    assert [c.id for c in position.candidates] == [345, 200, 290, 264, 337]
    assert position.drafted is not None
    assert position.drafted.id == token
    assert position.drafted not in position.candidates


def test_a_sampled_token_within_k_is_a_candidate() -> None:
    (position,), _ = read(classic({"b": -1.0, "a": -0.6, "c": -3.0}), k=3)
    assert [c.token for c in position.candidates] == [b"a", b"b", b"c"]
    assert position.drafted == position.candidates[1]


@pytest.mark.parametrize("token", ["a", "b", "c"])
def test_what_a_generous_server_shows_does_not_depend_on_what_it_sampled(token: str) -> None:
    shown = {"a": -0.6, "b": -1.0, "c": -3.0}
    (position,), _ = read(classic({token: shown[token]} | shown), k=2)
    assert [c.token for c in position.candidates] == [b"a", b"b"]
    assert (position.floor, position.drafted and position.drafted.token) == (-1.0, token.encode())


def test_a_sampled_token_as_likely_as_the_last_of_the_k_is_the_one_appended() -> None:
    (position,), _ = read(classic({"b": -1.0, "a": -0.6, "c": -1.0}), k=2)
    assert [c.token for c in position.candidates] == [b"a", b"c"]


def test_sampled_runs_need_tokens_named_by_id() -> None:
    body = classic({"token_id:99": -0.1, "token_id:100": -3.0})
    assert read_runs(body, NAMES, 2, 8, sampled=True)[0] == read_runs(body, NAMES, 2, 8)[0]
    with pytest.raises(UpstreamMalformed, match="by their text"):
        read_runs(classic({"a": -0.1, "b": -3.0}), NAMES, 2, 8, sampled=True)


def test_logprobs_0_shows_the_sampled_token_alone_and_that_is_not_enough() -> None:
    with pytest.raises(UpstreamMalformed, match="no usable"):
        read_runs(sample("vllm", "logprobs_0")["response"], TokenNames(TINY), 0, 8)


def test_end_is_a_candidate_and_ends_the_run() -> None:
    step = {"token_id:0": -0.1, "token_id:1": -3.0, "token_id:99": -4.0}
    positions, finish = read(classic({"a": -0.1}, step, finish="stop", text="a"))
    assert finish == "stop"
    assert [(c.token, c.special) for c in positions[1].candidates] == [
        (b"", END),
        (b"", "<|user|>"),
        (b"a", None),
    ]


def test_openais_spelling_of_parts_of_characters() -> None:
    (position,), finish = read(classic({"bytes:\\xe2": -0.1, "bytes:\\xzz": -1.0, "a": -3.0}))
    assert [c.token for c in position.candidates] == [b"\xe2", b"a"]
    assert finish == "length"


def test_a_run_is_cut_behind_a_token_without_a_name() -> None:
    steps = ({"a": -0.1}, {"\ufffd": -0.5, "b": -2.0}, {"c": -0.1})
    positions, finish = read(classic(*steps, text="a\ufffdc"))
    assert [p.drafted and p.drafted.token for p in positions] == [b"a", None]
    assert finish is None
    assert read(classic(*steps[:2], text="a\ufffd")) == (positions, "length")


def test_more_tokens_than_asked_for_are_cut() -> None:
    positions, finish = read(classic({"a": -0.1}, {"b": -0.1}), n=1)
    assert len(positions) == 1
    assert finish is None


def test_an_end_that_is_not_shown_is_an_empty_run() -> None:
    assert read(classic(finish="stop")) == ((), "stop")
    hidden = {"choices": [{"text": "", "logprobs": None, "finish_reason": "stop"}]}
    assert read(hidden) == ((), "stop")


def test_another_tokenizer_is_noticed_by_the_text() -> None:
    with pytest.raises(UpstreamMalformed, match="tokenizer is not the upstream's"):
        read(classic({"token_id:99": -0.1}, text="the"))


@pytest.mark.parametrize(
    ("first", "text"),
    [("token_id:34", ""), ("token_id:99", " a"), ("token_id:228", "\ufffd"), ("token_id:1", "x")],
    ids=["space dropped", "space added", "part of a character", "special"],
)
def test_servers_may_tidy_their_text(first: str, text: str) -> None:
    assert read(classic({first: -0.1}, text=text))[0]


@pytest.mark.parametrize(
    ("body", "said"),
    [
        ({}, "no choices"),
        ({"choices": []}, "no choices"),
        ({"choices": [3]}, "no choices"),
        (sample("vllm", "no_logprobs")["response"], "no log-probabilities"),
        (sample("llama_server", "ids")["response"], "set `api` to llama.cpp"),
        (classic(), "has no token"),
        ({"choices": [{"logprobs": {"tokens": ["a"], "token_logprobs": [-1.0]}}]}, "uneven"),
        (classic({"a": 2.0, "b": -0.1}), "mass"),
        (classic({"a": math.nan, "b": -math.inf}), "no usable"),
        (classic({"a": -9999.0}), "no usable"),
        (classic({"token_id:9999": -0.1}), "no usable"),
    ],
)
def test_says_what_is_wrong_with_an_answer(body: Any, said: str) -> None:
    with pytest.raises(UpstreamMalformed, match=said):
        read(body)


numbers = st.one_of(
    st.floats(), st.floats(-20, 0), st.none(), st.just(-9999.0), st.just(10**400), st.booleans()
)
keys = st.one_of(
    st.text(max_size=2),
    st.integers(-1, 300).map("token_id:{}".format),
    st.sampled_from(["", "\ufffd", "bytes:\\xe2\\x80", "bytes:\\", "<|end|>", "a", "b"]),
)
junk = st.recursive(
    st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=3)),
    lambda inner: st.one_of(st.lists(inner, max_size=3), st.dictionaries(keys, inner, max_size=3)),
    max_leaves=6,
)
steps = st.lists(
    st.tuples(
        st.one_of(keys, junk),
        st.one_of(numbers, junk),
        st.one_of(st.dictionaries(keys, st.one_of(numbers, junk), max_size=8), junk),
    ),
    max_size=3,
)


def sound(position: Position) -> bool:
    values = [c.logprob for c in position.candidates]
    drafted = [] if position.drafted is None else [position.drafted.logprob]
    return (
        all(math.isfinite(v) and v <= 0 for v in values + drafted)
        and values == sorted(values, reverse=True)
        and len({c.identity for c in position.candidates}) == len(values) > 0
        and sum(map(math.exp, values)) <= 1.0 + 1e-6
        and 0 <= position.hidden <= 1
    )


@pytest.mark.reliability("D1")
@thorough
@given(steps, st.one_of(junk, st.text(max_size=3)), st.integers(1, 6))
def test_any_answer_gives_sound_positions_or_a_typed_error(columns: Any, text: Any, k: int) -> None:
    tokens, values, shown = zip(*columns, strict=True) if columns else ((), (), ())
    logprobs = {
        "tokens": list(tokens),
        "token_logprobs": list(values),
        "top_logprobs": list(shown),
    }
    body = {"choices": [{"text": text, "finish_reason": text, "logprobs": logprobs}]}
    check(body, k)


@thorough
@given(junk, st.sampled_from(["choices", "logprobs", "tokens", "body"]))
def test_any_shape_gives_sound_positions_or_a_typed_error(value: Any, place: str) -> None:
    logprobs = {"tokens": value, "token_logprobs": value, "top_logprobs": value}
    choice = {"text": "a", "logprobs": value if place == "logprobs" else logprobs}
    body: Any = {"choices": value if place == "choices" else [choice]}
    check(value if place == "body" and isinstance(value, dict) else body, 5)


def check(body: Any, k: int) -> None:
    try:
        positions, finish = read(body, k, 3)
    except UpstreamMalformed:
        return
    assert all(map(sound, positions))
    assert positions or finish == "stop"
    assert all(p.drafted is not None for p in positions[:-1])


async def test_equals_the_model_behind_it() -> None:
    vocabulary = load_vocabulary(f"hf:{tiny().upstream}")
    size = len(vocabulary.tokens)
    with model_server(tiny().upstream, key="secret") as server:
        upstream = connect(
            Endpoint(server.base_url, "tiny", "secret"),
            api="completions",
            vocabulary=vocabulary,
            top_logprobs=size,
        )
        prefix = Prefix.of(vocabulary.encode("The harbour 東京".encode()))
        draft = await upstream.draft(prefix, 6, Allowed())
        await upstream.close()
        assert server.requests[0]["top_k"] == EVERY
        for position in draft.positions:
            truth = server.logprobs(list(prefix.ids)).tolist()
            shown = {c.id: c.logprob for c in position.candidates}
            assert shown == pytest.approx(dict(enumerate(truth)), abs=1e-12)
            assert position.hidden < 1e-12
            assert position.drafted == position.candidates[0]
            prefix = prefix.extend(position.drafted)
    assert draft.usage.calls == 1
    assert draft.usage.completion_tokens == len(draft.positions)
    assert draft.source == "upstream"


def echoed(*entries: Any, **changes: Any) -> dict[str, Any]:
    """An answer to `echo`; each entry is its token's key and what is listed there, or None."""
    tokens = [key for key, _ in entries]
    top = [listed for _, listed in entries]
    own = [None if listed is None else listed[key] for key, listed in entries]
    columns = {"tokens": tokens, "token_logprobs": own, "top_logprobs": top} | changes
    return {"choices": [{"index": 0, "text": "", "logprobs": columns}]}


A, B, C, D = (f"token_id:{ord(letter)}" for letter in "abcd")
ECHO = ((A, None), (B, {B: -3.0, C: -0.5}), (C, {C: -0.25}))


def test_an_echo_is_one_position_behind_each_token() -> None:
    """The first entry is null; a given token beyond the top k is no candidate."""
    first, second = read_text(echoed(*ECHO), (97, 98), NAMES, 1)
    assert [c.id for c in first.candidates] == [99]
    assert first.drafted is not None
    assert (first.drafted.id, first.drafted.logprob) == (98, -3.0)
    assert first.hidden == pytest.approx(1 - math.exp(-0.5))
    assert second.drafted is not None
    assert (second.drafted.id, second.drafted.logprob) == (99, -0.25)


def test_a_generated_token_may_be_missing_from_an_echo() -> None:
    (only,) = read_text(echoed(*ECHO[:2]), (97, 98), NAMES, 5)
    assert only.drafted is not None
    assert only.drafted.id == 98


def test_a_given_token_without_a_number_is_not_known() -> None:
    body = echoed(*ECHO, token_logprobs=[None, None, -0.25])
    first, _ = read_text(body, (97, 98), NAMES, 5)
    assert first.drafted is None


@pytest.mark.parametrize(
    ("entries", "ids"),
    [
        (ECHO, (97, 98, 99, 100)),  # the text is longer
        (ECHO, (97,)),  # more than one token was generated, or nothing was echoed in front
        (ECHO[:1], (97, 98)),
        (ECHO, (97, 100)),  # another text
        ((), (97, 98)),
        ((ECHO[1], ECHO[1]), (97, 98, 99)),
        ((ECHO[0], (B, None)), (97, 98)),
    ],
)
def test_what_is_no_echo_is_an_error(entries: Any, ids: tuple[int, ...]) -> None:
    with pytest.raises(UpstreamMalformed):
        read_text(echoed(*entries), ids, NAMES, 5)


def test_the_recorded_echo_of_vllm() -> None:
    """Named by text, as recorded: the ids that were sent are what counts."""
    body = sample("vllm", "echo")["response"]
    logprobs = body["choices"][0]["logprobs"]
    *given, _ = logprobs["tokens"]
    listed = [name for top in logprobs["top_logprobs"][1:] for name in top]
    words = list(dict.fromkeys([*given, *listed]))
    names = TokenNames(vocabulary_of({i: word.encode() for i, word in enumerate(words)}))
    sent = tuple(words.index(word) for word in given)
    positions = read_text(body, sent, names, 5)
    assert [len(position.candidates) for position in positions] == [5] * len(sent)
    assert len(positions) == len(sent)
    told = [p.drafted.logprob for p in positions[:-1] if p.drafted is not None]
    assert told == logprobs["token_logprobs"][1:-1]
