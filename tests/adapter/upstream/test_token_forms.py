"""Every form in which servers name tokens, each with a recorded or constructed sample."""

import math
from dataclasses import replace
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from adapter.candidates import END, Candidate, make_position
from adapter.errors import UpstreamMalformed
from adapter.upstream.answers import nats
from adapter.upstream.completions import read_runs
from adapter.upstream.llamacpp import read_forced
from adapter.upstream.tokens import TokenNames
from tests.adapter.upstream.vocabularies import BYTES, sample, vocabulary_of
from tests.support.vocabularies import missing, real
from tokenizer_maps.coverage import is_text

NAMES = TokenNames(BYTES)
PARTS = vocabulary_of(
    {
        1: b"\xe2\x80",
        2: b" \xe2\x80\x9c",
        3: b"\xef\xbf\xbd",
        4: b"a\xff",
        5: "“".encode(),
        6: b"\x9c",
        7: b"<",
        8: rb"\xe2",
        9: b"a",
    },
    {"<|im_end|>": 10, "<|call|>": 11},
    frozenset({10}),
)
WORDS = TokenNames(PARTS)


def entry(token: str, spelt: list[int] | None, **more: Any) -> dict[str, Any]:
    return {"token": token, "logprob": -1.5, "bytes": spelt} | more


def text(found: Candidate | None) -> bytes | None:
    return None if found is None else found.token


def test_an_id_is_used_before_anything_else() -> None:
    assert NAMES.of_key("token_id:99", -1.0) == Candidate(b"a", -1.0, 99)
    assert text(WORDS.of_entry(entry("a", [97], id=5))) == "“".encode()
    assert NAMES.of_key("token_id:99999", -1.0) is None


def test_recorded_ids_of_vllm() -> None:
    body = sample("vllm", "collapsed_ids")["response"]
    shown = body["choices"][0]["logprobs"]["top_logprobs"][0]
    ids = [int(key.removeprefix("token_id:")) for key in shown]
    names = TokenNames(vocabulary_of({i: bytes([n + 97]) for n, i in enumerate(ids)}))
    found = [names.of_key(key, logprob) for key, logprob in shown.items()]
    assert [candidate.id for candidate in found if candidate] == ids
    assert len(ids) == 5


def test_bytes_of_chat() -> None:
    assert text(WORDS.of_entry(entry("“", [226, 128, 156]))) == "“".encode()
    assert text(WORDS.of_entry(entry("�", [156]))) == b"\x9c"


def test_bytes_of_the_replacement_character() -> None:
    assert (
        TokenNames(vocabulary_of({1: b"\xe2\x80", 2: b"\xff"})).of_entry(
            entry("�", [239, 191, 189])
        )
        is None
    )
    own = vocabulary_of({1: b"a", 2: b"\xef\xbf\xbd"})
    assert text(TokenNames(own).of_entry(entry("�", [239, 191, 189]))) == b"\xef\xbf\xbd"
    shared = vocabulary_of({1: b"\x9c", 2: b"\xef\xbf\xbd"})
    assert TokenNames(shared).of_entry(entry("�", [239, 191, 189])) is None


def test_vllm_spells_pending_bytes_again() -> None:
    left_over = entry("", [])
    assert WORDS.of_entry(left_over) is None
    whole = entry("“", [226, 128, 156])
    assert text(WORDS.of_entry(whole, pending=b"\xe2\x80")) == b"\x9c"
    assert text(WORDS.of_entry(whole, pending=b"\xf0")) == "“".encode()


def test_vllm_spells_the_id_in_the_bytes() -> None:
    spelt = list(b"token_id:5")
    assert text(WORDS.of_entry(entry("token_id:5", spelt))) == "“".encode()


@pytest.mark.parametrize("case", ["forced", "partial_2"])
def test_recorded_bytes_of_llama_cpp(case: str) -> None:
    logprobs = sample("llama_server", case)["response"]["choices"][0]["logprobs"]
    listed = logprobs["content"][0]["top_logprobs"]
    names = TokenNames(vocabulary_of({e["id"]: bytes(e["bytes"]) for e in listed}))
    by_id = [names.of_entry(e) for e in listed]
    by_bytes = [names.of_entry({k: v for k, v in e.items() if k != "id"}) for e in listed]
    assert by_id == by_bytes
    assert [text(found) for found in by_id] == [bytes(e["bytes"]) for e in listed]


def test_recorded_end_of_llama_cpp_is_told_by_its_id() -> None:
    body = sample("llama_server", "end_forced")["response"]
    listed = body["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    words = {e["id"]: bytes(e["bytes"]) for e in listed if e["bytes"]} | {30: b"."}
    names = TokenNames(vocabulary_of(words, {"<|im_end|>": 2}, frozenset({2})))
    assert read_forced(body, names).candidates[0].special == END
    nameless = {"token": "", "logprob": -0.3, "bytes": []}
    assert names.of_entry(nameless) is None


@pytest.mark.parametrize("spelt", [None, []])
@pytest.mark.parametrize(("name", "special"), [("<|im_end|>", END), ("<|call|>", "<|call|>")])
def test_no_bytes_is_a_special_token(spelt: list[int] | None, name: str, special: str) -> None:
    found = WORDS.of_entry(entry(name, spelt))
    assert found is not None
    assert (found.token, found.special) == (b"", special)
    assert WORDS.of_entry(entry("<|no such|>", spelt)) is None


@pytest.mark.parametrize("key", ["<|im_end|>", ""])
def test_a_special_token_with_literal_bytes(key: str) -> None:
    found = WORDS.of_entry(entry(key, list(b"<|im_end|>")))
    assert found is not None
    assert (found.token, found.special) == (b"", END)


def test_bytes_before_escaped_text() -> None:
    assert text(WORDS.of_entry(entry(r"\xe2\x80", [226, 128]))) == b"\xe2\x80"
    assert text(WORDS.of_entry(entry(r"\xe2", list(rb"\xe2")))) == rb"\xe2"


@pytest.mark.parametrize(
    ("key", "token"),
    [
        (r"bytes:\xe2\x80", b"\xe2\x80"),
        (r"bytes: \xe2\x80\x9c", b" \xe2\x80\x9c"),
        (r"bytes:a\xff", b"a\xff"),
        ("bytes:“", None),
        (r"bytes:\xe2\x8", None),
        (r"bytes:\xc3", None),
        ("bytes:", None),
    ],
)
def test_legacy_completions(key: str, token: bytes | None) -> None:
    assert text(WORDS.of_key(key, -1.0)) == token


def escaped(token: bytes) -> str:
    """A part of a character as gpt-3.5-turbo-instruct wrote it."""
    return "bytes:" + "".join(chr(b) if 32 <= b < 127 and b != 92 else f"\\x{b:02x}" for b in token)


@pytest.mark.vocabularies
@pytest.mark.parametrize(("name", "count"), [("cl100k", 773), ("o200k", 1562), ("r50k", 344)])
def test_legacy_completions_of_real_vocabularies(name: str, count: int) -> None:
    reason = missing(name)
    if reason:
        pytest.skip(reason)
    vocabulary = real(name)
    names = TokenNames(vocabulary)
    invalid = [token for token in vocabulary.tokens if "\ufffd" in token.decode("utf-8", "replace")]
    invalid = [token for token in invalid if not is_text(token)]
    assert len(invalid) == count
    assert [text(names.of_key(escaped(token), -1.0)) for token in invalid] == invalid
    assert not any(token.startswith(b"bytes:") for token in vocabulary.tokens)


@pytest.mark.vocabularies
@pytest.mark.parametrize(("name", "shared"), [("cl100k", 702), ("o200k", 1217)])
def test_replaced_text_of_real_vocabularies(name: str, shared: int) -> None:
    reason = missing(name)
    if reason:
        pytest.skip(reason)
    vocabulary = real(name)
    names = TokenNames(vocabulary)
    invalid = [token for token in vocabulary.tokens if not is_text(token)]
    found = [text(names.of_key(token.decode("utf-8", "replace"), -1.0)) for token in invalid]
    assert found.count(None) == shared  # in o200k one with a token that really holds U+FFFD
    assert all(token in (None, own) for token, own in zip(found, invalid, strict=True))


def test_replaced_text_counts_where_it_is_unique() -> None:
    assert text(WORDS.of_key("a�", -1.0)) == b"a\xff"
    assert text(WORDS.of_key(" �", -1.0)) is None  # what no token is printed as
    assert WORDS.of_key("�", -1.0) is None  # ×3: half a character, another, U+FFFD itself
    assert text(WORDS.of_entry(entry("a�", None))) == b"a\xff"


def test_equal_keys_collapse() -> None:
    body = sample("vllm", "collapsed_text")["response"]
    assert list(body["choices"][0]["logprobs"]["top_logprobs"][0]) == [""]
    with pytest.raises(UpstreamMalformed, match="no usable"):
        read_runs(body, NAMES, 5, 1)
    logprobs = {"tokens": ["a"], "token_logprobs": [-0.5], "top_logprobs": [{"a": -0.5, "": -2.0}]}
    fewer = {"choices": [{"text": "a", "logprobs": logprobs, "finish_reason": "length"}]}
    (position,), _ = read_runs(fewer, NAMES, 5, 1)[0]
    assert [candidate.token for candidate in position.candidates] == [b"a"]


def test_the_sentinel_is_dropped() -> None:
    assert math.isnan(nats(-9999.0))
    assert math.isnan(nats(-9999))
    assert nats(-9998.5) == -9998.5
    names = (NAMES.of_key(key, nats(value)) for key, value in [("a", -0.5), ("b", -9999.0)])
    position = make_position([c for c in names if c is not None], None, NAMES.size)
    assert [candidate.token for candidate in position.candidates] == [b"a"]


def test_of_tokens_spelt_alike_the_canonical_one_counts() -> None:
    twice = vocabulary_of({1: b"a", 2: b"a"})
    canonical = replace(twice, encoder=lambda data: (2,) if data == b"a" else ())
    assert TokenNames(canonical).of_key("a", -1.0) == Candidate(b"a", -1.0, 2)
    assert TokenNames(twice).of_key("a", -1.0) == Candidate(b"a", -1.0, 1)


junk = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=12),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(max_size=4), inner),
    max_leaves=6,
)
keys = st.one_of(
    st.text(max_size=12),
    st.builds("bytes:{}".format, st.text(alphabet="\\xuN{}0123456789abcdef é", max_size=16)),
    st.builds("token_id:{}".format, st.integers()),
    st.sampled_from(["<|im_end|>", "�", "", "a", "\udc80", "\ud83d"]),
)
entries = st.fixed_dictionaries(
    {},
    optional={
        "token": keys | junk,
        "logprob": st.floats() | junk,
        "bytes": st.lists(st.integers(-1, 256), max_size=6) | junk,
        "id": st.integers(-2, 14) | junk,
    },
)


def check(key: str, found_entry: dict[str, Any]) -> None:
    for found in (WORDS.of_key(key, -1.0), WORDS.of_entry(found_entry)):
        if found is not None:
            assert found.id is not None
            expected = WORDS.of_id(found.id, -1.0)
            assert expected is not None
            assert (found.token, found.special) == (expected.token, expected.special)


@settings(max_examples=300, deadline=None)
@given(key=keys, found=entries)
def test_no_string_crashes(key: str, found: dict[str, Any]) -> None:
    check(key, found)


@pytest.mark.full
@settings(max_examples=3000, deadline=None, suppress_health_check=[HealthCheck.too_slow])
@given(key=keys, found=entries)
def test_no_string_crashes_at_length(key: str, found: dict[str, Any]) -> None:
    check(key, found)
