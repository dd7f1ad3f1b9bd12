"""Tokens of an unknown vocabulary: named by their bytes, or not at all; never guessed."""

import math

import pytest

from adapter.budget import Budget
from adapter.candidates import END, Candidate, make_position
from adapter.errors import SettingsError, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.settings import load_settings
from adapter.upstream import Endpoint, connect
from adapter.upstream.completions import read_runs
from adapter.upstream.unknown import Spellings, SpeltNames, spelt_id
from tests.support.scripted import Reply, classic, scripted

NAMES = SpeltNames()


@pytest.mark.parametrize(
    ("key", "token"),
    [
        (" the", b" the"),
        ("東", "東".encode()),
        ("bytes:\\xe6\\x9d", b"\xe6\x9d"),
        ("", None),
        ("�", None),
        (" a�", None),
        ("token_id:17", None),
        ("<|im_start|>", None),
        ("<s>", None),
        ("[INST]", None),
        ("<", b"<"),
        ("<b>", b"<b>"),
        ("|", b"|"),
    ],
)
def test_a_key_is_the_bytes_of_one_token_or_nobody(key, token):
    found = NAMES.of_key(key, -1.0)
    assert (None if found is None else found.token) == token
    if found is not None:
        assert (found.id, found.special, found.logprob) == (spelt_id(token), None, -1.0)


@pytest.mark.parametrize("key", ["</s>", "<|endoftext|>", "<|im_end|>", "<end_of_turn>"])
def test_the_usual_names_of_the_end_are_the_end(key):
    assert NAMES.of_key(key, -1.0) == Candidate(b"", -1.0, spelt_id(b""), END)
    entry = {"token": key, "bytes": list(key.encode()), "logprob": -1.0}
    assert NAMES.of_entry(entry) == NAMES.of_key(key, -1.0)


def test_an_entry_is_known_by_its_bytes():
    found = NAMES.of_entry({"token": "�", "bytes": [0xE6, 0x9D], "logprob": -1.0, "id": 7})
    assert found == Candidate(b"\xe6\x9d", -1.0, spelt_id(b"\xe6\x9d"))
    whole = {"token": "東", "bytes": list("東".encode()), "logprob": -1.0}
    assert NAMES.of_entry(whole, pending=b"\xe6").token == b"\x9d\xb1"
    replaced = {"token": "�", "bytes": [0xEF, 0xBF, 0xBD], "logprob": -1.0}
    assert NAMES.of_entry(replaced) is None
    assert NAMES.of_entry({"token": "", "bytes": [], "logprob": -1.0}) is None
    assert NAMES.of_entry({"bytes": [97], "logprob": -1.0}).token == b"a"
    assert NAMES.of_entry({"token": None, "bytes": None, "logprob": -1.0}) is None


def test_ids_are_the_same_in_every_process_and_differ():
    assert spelt_id(b"") == 4119008146064567469
    assert spelt_id(b" the") == 85097143312015463
    assert len({spelt_id(b"%d" % i) for i in range(10_000)}) == 10_000


def test_spellings_hold_what_was_met():
    spellings = Spellings()
    drafted = Candidate(b"c", -9.0, spelt_id(b"c"))
    end = Candidate(b"", -2.0, spelt_id(b""), END)
    spellings.meet(make_position([Candidate(b"ab", -1.0, spelt_id(b"ab")), end], drafted))
    assert spellings == {spelt_id(b"ab"): b"ab", spelt_id(b""): b"", spelt_id(b"c"): b"c"}


def test_what_was_printed_alike_counts_as_hidden_and_bounds_nothing():
    body = classic({"a": -0.5, "�": -2.0}, {"b": -0.5, "c": -1.5}, text="ab")
    (first, second), _ = read_runs(body, NAMES, 2, 2)[0]
    assert first.floor == 0.0  # the nameless one may be several, likelier than any shown
    assert first.hidden == pytest.approx(1.0 - math.exp(-0.5))
    assert second.floor == -1.5
    (short,), _ = read_runs(classic({"a": -0.5, "b": -2.0}, text="a"), NAMES, 3, 1)[0]
    assert short.floor == 0.0  # three were asked for: two are one


def test_tokens_that_do_not_add_up_to_the_text_are_refused():
    with pytest.raises(UpstreamMalformed, match="set `tokenizer`"):
        read_runs(classic({"the": -0.5}, {"cat": -0.5}, text=" the cat"), NAMES, 1, 2)


async def test_nothing_is_asked_for_by_id():
    with scripted(Reply(body=classic({"a": -0.5, "b": -2.0}, text="a"))) as script:
        one = connect(
            Endpoint(script.base_url, "m"),
            api="completions",
            vocabulary=None,
            top_logprobs=2,
            form="text",
        )
        draft = await one.draft(Prefix.of("東京"), 1, Budget(1))
        await one.close()
    assert [p.drafted.token for p in draft.positions] == [b"a"]
    (asked,) = script.requests
    assert (asked["prompt"], asked["return_tokens_as_token_ids"]) == ("東京", False)
    assert asked["max_tokens"] == 4  # a character has four bytes at most
    assert one.identity[:2] == ("text", "completions")
    assert "unknown" in one.identity


def test_settings_of_an_unknown_tokenizer(tmp_path):
    def load(upstream, **model):
        own = {"base_url": "http://127.0.0.1:1/v1", "model": "m", "tokenizer": "unknown"}
        pair = {"experts": {"e": "a/b"}, "antiexpert": "a/c"}
        values = {"upstream": own | upstream, "pair": pair} | model
        return load_settings(None, {("models",): {"m": values}}).models["m"]

    assert load({}).upstream.prefix is None
    assert load({"prefix": "text"}).upstream.prefix == "text"
    with pytest.raises(SettingsError, match="no ids to send"):
        load({"prefix": "ids"})
    with pytest.raises(SettingsError, match=r"needs to know upstream\.tokenizer"):
        load({}, bridge="exact")
