"""The llama.cpp dialect: recorded answers of its server, and scripted ones."""

import math
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.candidates import END
from adapter.errors import SettingsError, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream import Endpoint, Upstream, connect
from adapter.upstream.llamacpp import read_forced, read_run
from adapter.upstream.tokens import TokenNames
from tests.adapter.upstream.test_completions import junk, numbers, sound
from tests.adapter.upstream.vocabularies import BYTES, Allowed, sample, thorough, vocabulary_of
from tests.support.scripted import Reply, native, scripted
from tokenizer_maps.vocabulary import Vocabulary

NAMES = TokenNames(BYTES)


def spelled(case: str) -> Vocabulary:
    """The part of the server's vocabulary that a recorded answer shows."""
    content = sample("llama_server", case)["response"]["choices"][0]["logprobs"]["content"]
    shown = {e["id"]: bytes(e["bytes"]) for step in content for e in step["top_logprobs"]}
    ends = frozenset(i for i, spelt in shown.items() if not spelt)
    words = {i: spelt for i, spelt in shown.items() if spelt}
    specials = {f"<|{i}|>": i for i in ends}
    return vocabulary_of(words, specials, ends)


def answer(case: str) -> Any:
    return sample("llama_server", case)["response"]


def wire(base_url: str, vocabulary: Vocabulary = BYTES) -> Upstream:
    endpoint = Endpoint(base_url, "any", timeout=5)
    return connect(endpoint, api="llama.cpp", vocabulary=vocabulary, top_logprobs=5)


def test_reads_ids_and_bytes() -> None:
    positions = read_run(answer("ids"), TokenNames(spelled("ids")))
    assert [p.drafted.token for p in positions if p.drafted] == [b" not", b"ices", b" to"]
    assert len(positions[0].candidates) == 5
    assert positions[0].candidates[0].logprob == -1.99294912815094


def test_reads_a_forced_position_with_parts_of_characters() -> None:
    position = read_forced(answer("forced"), TokenNames(spelled("forced")))
    assert [c.token for c in position.candidates][:3] == [b"\xe3\x81", b"\xe3\x82", "る".encode()]
    assert position.drafted is None


@pytest.mark.parametrize("case", ["end", "end_forced"])
def test_reads_end_by_its_id(case: str) -> None:
    body, names = answer(case), TokenNames(spelled(case))
    position = read_forced(body, names) if case == "end_forced" else read_run(body, names)[0]
    assert (position.candidates[0].special, position.candidates[0].token) == (END, b"")
    assert (position.drafted is None) == (case == "end_forced")


@pytest.mark.parametrize("case", ["partial_1", "partial_2"])
def test_a_run_whose_first_position_is_lost_is_empty(case: str) -> None:
    vocabulary = spelled("partial_2")
    assert read_run(answer(case), TokenNames(vocabulary)) == ()


def test_a_run_is_cut_before_the_first_lost_position() -> None:
    whole = "é".encode()
    body = native(
        [(99, b"a", -0.1), (100, b"b", -3.0)],
        [(whole[1] + 2, whole[1:], -0.2), (100, b"b", -3.0)],
    )
    body["choices"][0]["logprobs"]["content"][1]["bytes"] = list(whole)
    assert [p.drafted and p.drafted.token for p in read_run(body, NAMES)] == [b"a"]


def test_another_tokenizer_is_refused() -> None:
    body = native([(99, b"a", -0.1), (100, b"bb", -3.0)])
    for reader in (read_run, read_forced):
        with pytest.raises(UpstreamMalformed, match="tokenizer is not the upstream's"):
            reader(body, NAMES)
    with pytest.raises(UpstreamMalformed, match="tokenizer is not the upstream's"):
        read_run(native([(9999, b"zz", -0.1), (99, b"a", -1.0)]), NAMES)


def test_rows_past_the_vocabulary_are_hidden_mass() -> None:
    body = native([(99, b"a", math.log(0.6)), (9999, b"[PAD]", math.log(0.4))])
    position = read_forced(body, NAMES)
    assert [c.id for c in position.candidates] == [99]
    assert position.hidden == pytest.approx(0.4)


@pytest.mark.parametrize(
    ("body", "said"),
    [
        (answer("no_logprobs"), "no log-probabilities"),
        (sample("vllm", "text")["response"], "set `api` to completions"),
        ({"choices": [{"logprobs": {"content": []}}]}, "shows no token"),
        ({"choices": [{"logprobs": {"content": [{"id": 99}]}}]}, "no top_logprobs"),
        ({"choices": [{"logprobs": {"content": [{"top_logprobs": [{}]}]}}]}, "without an id"),
        (native([(99, b"a", 1.0), (100, b"b", -0.1)]), "mass"),
        (native([(99, b"a", math.nan)]), "no usable"),
    ],
)
def test_says_what_is_wrong_with_an_answer(body: Any, said: str) -> None:
    with pytest.raises(UpstreamMalformed, match=said):
        read_forced(body, NAMES)


def test_bytes_that_are_none() -> None:
    body = native([(99, b"a", -0.1)])
    body["choices"][0]["logprobs"]["content"][0]["top_logprobs"][0]["bytes"] = [300]
    with pytest.raises(UpstreamMalformed, match="no bytes"):
        read_forced(body, NAMES)


entries = st.fixed_dictionaries(
    {},
    optional={
        "id": st.one_of(st.integers(-1, 400), junk),
        "bytes": st.one_of(st.lists(st.integers(-1, 300), max_size=2), junk),
        "logprob": st.one_of(numbers, junk),
    },
)
fair = st.integers(0, 257).flatmap(
    lambda i: st.fixed_dictionaries(
        {"id": st.just(i), "bytes": st.just(list(BYTES.tokens[i])), "logprob": numbers}
    )
)
lists = st.one_of(st.lists(st.one_of(fair, entries), max_size=6), junk)
content = st.lists(
    st.builds(lambda entry, top: {**entry, "top_logprobs": top}, st.one_of(fair, entries), lists),
    max_size=3,
)


@thorough
@given(st.one_of(content, junk), junk)
def test_any_answer_gives_sound_positions_or_a_typed_error(content: Any, text: Any) -> None:
    body = {"choices": [{"text": text, "logprobs": {"content": content}}]}
    for reader in (read_run, lambda body, names: (read_forced(body, names),)):
        try:
            positions = reader(body, NAMES)
        except UpstreamMalformed:
            continue
        assert all(map(sound, positions))


async def test_one_position_is_asked_for_with_a_letter_forced() -> None:
    with scripted(Reply(body=native([(67, b"A", -9.0), (99, b"a", -0.1)]))) as script:
        upstream = wire(script.base_url)
        draft = await upstream.draft(Prefix.of([5, 6]), 1, Allowed())
        await upstream.close()
    body = script.requests[0]
    assert body["logit_bias"] == {str(ord("A") + 2): 100}
    assert (body["prompt"], body["max_tokens"], body["logprobs"]) == ([5, 6], 1, 5)
    assert (body["temperature"], body["top_k"], body["min_p"]) == (0, 0, 0)
    assert body["cache_prompt"] is True
    assert draft.finish_reason is None
    assert draft.positions[0].drafted is None
    assert (draft.usage.calls, draft.usage.prompt_tokens, draft.usage.cached_tokens) == (1, 3, 2)


async def test_a_lost_first_position_is_asked_for_again_alone() -> None:
    replies = (Reply(body=native()), Reply(body=native([(99, b"a", -0.1)])))
    budget = Allowed()
    with scripted(*replies) as script:
        upstream = wire(script.base_url)
        draft = await upstream.draft(Prefix.of([5]), 8, budget)
        await upstream.close()
    assert [r["max_tokens"] for r in script.requests] == [8, 1]
    assert "logit_bias" not in script.requests[0]
    assert (len(draft.positions), draft.finish_reason) == (1, None)
    assert draft.usage.calls == script.calls == budget.taken == 2


def test_a_vocabulary_without_letters_cannot_be_forced() -> None:
    with pytest.raises(SettingsError, match="one letter"):
        wire("http://127.0.0.1:1/v1", vocabulary_of({0: b"ab"}))
