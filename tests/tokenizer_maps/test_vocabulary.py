"""Vocabularies: bytes in, the same bytes out, and never a special token out of text."""

import json
from concurrent.futures import ThreadPoolExecutor
from itertools import product
from pathlib import Path

import pytest
import tiktoken
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, normalizers, processors
from tokenizers.pre_tokenizers import ByteLevel, Whitespace

from tests.tokenizer_maps import worlds
from tokenizer_maps import Kind, Vocabulary, VocabularyError, load_vocabulary
from tokenizer_maps.coverage import is_text
from tokenizer_maps.openai import from_encoding


@pytest.fixture(scope="session")
def tik(gpt: Vocabulary) -> Vocabulary:
    return from_encoding(worlds.as_tiktoken(gpt))


@pytest.fixture(params=["gpt", "digits", "tik"])
def vocabulary(request: pytest.FixtureRequest) -> Vocabulary:
    found: Vocabulary = request.getfixturevalue(request.param)
    return found


@pytest.mark.parametrize("text", worlds.SAMPLES)
def test_text_survives(vocabulary: Vocabulary, text: str) -> None:
    assert vocabulary.decode(vocabulary.encode(text.encode())) == text.encode()


MIXED = st.lists(
    st.one_of(
        st.text(max_size=8),
        st.sampled_from([" the", "  ", "12", "\n\n", "漢字", "👩‍👧", "<tool>", "</s>", "'re"]),
        st.binary(max_size=4),
    )
).map(lambda parts: b"".join(p if isinstance(p, bytes) else p.encode() for p in parts))


@settings(max_examples=400, deadline=None)
@given(data=MIXED)
def test_any_bytes_survive(
    gpt: Vocabulary, digits: Vocabulary, tik: Vocabulary, data: bytes
) -> None:
    for vocabulary in (gpt, digits, tik):
        ids = vocabulary.encode(data)
        assert vocabulary.decode(ids) == data
        assert all(vocabulary.spells(i) for i in ids)


@settings(max_examples=200, deadline=None)
@given(text=st.text(max_size=40))
def test_text_is_tokenised_as_the_tokenizer_does(folder: Path, gpt: Vocabulary, text: str) -> None:
    plain = Tokenizer.from_file(str(folder / "gpt/tokenizer.json"))
    if "<|" not in text:
        assert list(gpt.encode(text.encode())) == plain.encode(text).ids


def test_both_readers_agree_on_one_set_of_merges(gpt: Vocabulary, tik: Vocabulary) -> None:
    parts = [" the", "  ", "12", "\n\n", "a", "\n", "'re", "漢", "</s>"]
    pieces = [*(part.encode() for part in parts), b"\xff", b"\xe2\x80", b" \xd0"]
    for data in map(b"".join, product(pieces, repeat=3)):
        ours, theirs = ([v.tokens[i] for i in v.encode(data)] for v in (gpt, tik))
        assert ours == theirs


def test_half_a_character_gets_the_token_a_model_has_seen_there(gpt: Vocabulary) -> None:
    partial = next(t for t in gpt.tokens if t.startswith(b" ") and not is_text(t))
    assert gpt.encode(b"a" + partial) == (gpt.id_of(b"a"), gpt.id_of(partial))


def test_tiktoken_is_tokenised_as_tiktoken_does(gpt: Vocabulary) -> None:
    encoding = worlds.as_tiktoken(gpt)
    vocabulary = from_encoding(encoding)
    for text in worlds.SAMPLES:
        assert list(vocabulary.encode(text.encode())) == encoding.encode(text)


def test_tiktoken_facts(tik: Vocabulary) -> None:
    end = len(tik.tokens) - 1
    assert dict(tik.specials) == {"<|endoftext|>": end}
    assert tik.end == {end}
    assert tik.kinds[end] is Kind.SPECIAL
    assert tik.tokens[end] == b""
    assert end not in tik.encode(b"a<|endoftext|>b")


def test_tiktoken_by_name(gpt: Vocabulary, monkeypatch: pytest.MonkeyPatch) -> None:
    encoding = worlds.as_tiktoken(gpt)
    monkeypatch.setattr(tiktoken, "get_encoding", lambda name: {"known": encoding}[name])
    assert load_vocabulary("tiktoken:known").encode(b"the") == tuple(encoding.encode("the"))


def test_tiktoken_unknown_or_out_of_reach(monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(VocabularyError, match=r"known names.*cl100k_base"):
        load_vocabulary("tiktoken:no_such_base")

    def offline(name: str) -> None:
        raise OSError("no route to host")

    monkeypatch.setattr(tiktoken, "get_encoding", offline)
    with pytest.raises(VocabularyError, match="TIKTOKEN_CACHE_DIR"):
        load_vocabulary("tiktoken:cl100k_base")


def test_specials_in_text_are_text(digits: Vocabulary) -> None:
    ids = digits.encode(b"a</s> <s> b<tool>c")
    assert not set(ids) & set(digits.specials.values())
    assert digits.id_of(b"<tool>") in ids


def test_kinds_and_ids(digits: Vocabulary) -> None:
    assert dict(digits.specials) == {"<s>": 0, "</s>": 1}
    assert digits.kinds[:3] == (Kind.SPECIAL, Kind.SPECIAL, Kind.BYTE)
    tool = digits.id_of(b"<tool>")
    assert tool is not None
    assert digits.kinds[tool] is Kind.ADDED
    assert digits.end == {1}
    assert digits.id_of(b"") is None
    assert digits.id_of(b"no such token") is None


def test_spaces_around_a_stripping_token_are_kept(tmp_path: Path) -> None:
    tokenizer = worlds.gpt2_style()
    spec = json.loads(tokenizer.to_str())
    spec["added_tokens"].append(
        {
            "id": 2000,
            "content": "<eat>",
            "single_word": False,
            "lstrip": True,
            "rstrip": True,
            "normalized": False,
            "special": False,
        }
    )
    spec["truncation"] = {
        "direction": "Right",
        "max_length": 4,
        "strategy": "LongestFirst",
        "stride": 0,
    }
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    vocabulary = load_vocabulary(f"hf:{tmp_path}/tokenizer.json")
    text = b"one  <eat>  two three four five"
    assert vocabulary.decode(vocabulary.encode(text)) == text
    assert vocabulary.id_of(b"<eat>") == 2000
    assert 2000 in vocabulary.encode(text)
    assert vocabulary.kinds[1999] is Kind.NONE


def test_no_normaliser_and_no_dummy_prefix(tmp_path: Path, gpt: Vocabulary) -> None:
    tokenizer = worlds.gpt2_style()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = ByteLevel(add_prefix_space=True)
    changed = load_vocabulary(worlds.write(tmp_path, tokenizer, "<|end|>"))
    text = "the ﬁrst Å".encode()
    assert changed.encode(text) == gpt.encode(text)
    assert changed.fingerprint != gpt.fingerprint


def test_bytes_without_a_token_are_left_out(tmp_path: Path) -> None:
    tokenizer = worlds.gpt2_style()
    spec = json.loads(tokenizer.to_str())
    del spec["model"]["vocab"]["ÿ"]  # GPT-2's spelling of 0xFF
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    vocabulary = load_vocabulary(f"hf:{tmp_path}")
    assert vocabulary.decode(vocabulary.encode(b"a\xffb")) == b"ab"


def test_start_end_and_template(tmp_path: Path) -> None:
    tokenizer = worlds.digit_style()
    tokenizer.post_processor = processors.TemplateProcessing(
        single="<s> $A </s>", special_tokens=[("<s>", 0), ("</s>", 1)]
    )
    templates = [{"name": "default", "template": "T"}, {"name": "tool", "template": "U"}]
    eos = {"content": "</s>", "lstrip": False}
    spec = worlds.write(tmp_path, tokenizer, "", eos_token=eos, chat_template=templates)
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": [1, 7]}')
    (tmp_path / "config.json").write_text('{"eos_token_id": 9}')
    vocabulary = load_vocabulary(spec)
    assert vocabulary.start == (0,)
    assert vocabulary.end == {1, 7, 9}
    assert vocabulary.chat_template == "T"
    assert not {0, 1} & set(vocabulary.encode(b"a"))
    (tmp_path / "chat_template.jinja").write_text("V")
    assert load_vocabulary(spec).chat_template == "V"


def test_start_by_configuration(tmp_path: Path) -> None:
    spec = worlds.write(tmp_path, worlds.digit_style(), "</s>", bos_token="<s>", add_bos_token=True)
    assert load_vocabulary(spec).start == (0,)


def test_fingerprints(tmp_path: Path, gpt: Vocabulary, digits: Vocabulary) -> None:
    again = load_vocabulary(worlds.write(tmp_path / "a", worlds.gpt2_style(), "<|sys|>"))
    assert again.fingerprint == gpt.fingerprint != digits.fingerprint
    spec = json.loads(worlds.gpt2_style().to_str())
    spec["model"]["merges"] = [" ".join(merge) for merge in spec["model"]["merges"]]
    del spec["model"]["ignore_merges"]
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert load_vocabulary(f"hf:{tmp_path}").fingerprint == gpt.fingerprint
    spec["model"]["ignore_merges"] = True
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    assert load_vocabulary(f"hf:{tmp_path}").fingerprint != gpt.fingerprint


@pytest.mark.parametrize("spec", ["gpt2", "spm:x", "hf:", "", "tiktoken"])
def test_unknown_prefixes(spec: str) -> None:
    with pytest.raises(VocabularyError, match=r"hf:DIRECTORY.*sentencepiece:FILE or gguf:FILE"):
        load_vocabulary(spec)


def test_missing_file(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="does not exist"):
        load_vocabulary(f"hf:{tmp_path}")


@pytest.mark.parametrize("content", ["", "[]", "{}", '{"model": 3, "decoder": null}', "\udcff"])
def test_unreadable_file(tmp_path: Path, content: str) -> None:
    (tmp_path / "tokenizer.json").write_bytes(content.encode("utf-8", "surrogateescape"))
    with pytest.raises(VocabularyError):
        load_vocabulary(f"hf:{tmp_path}")


@pytest.mark.parametrize(
    ("part", "value"),
    [
        ("decoder", {"type": "WordPiece", "prefix": "##", "cleanup": True}),
        ("decoder", {"type": "ByteFallback"}),
        ("decoder", None),
        ("decoder", {"type": "Sequence", "decoders": [{"type": "Fuse"}]}),
        ("model", {"type": "WordPiece", "unk_token": "a", "vocab": {"a": 0}}),
        ("model", {"type": "Unigram", "unk_id": 0, "vocab": [["a", 0.0]]}),
    ],
)
def test_other_kinds_are_refused(tmp_path: Path, part: str, value: object) -> None:
    spec = json.loads(worlds.gpt2_style().to_str()) | {part: value}
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(VocabularyError, match="not supported"):
        load_vocabulary(f"hf:{tmp_path}")


def test_word_marks_are_refused(tmp_path: Path) -> None:
    spec = json.loads(worlds.gpt2_style().to_str())
    spec["model"]["end_of_word_suffix"] = "</w>"
    (tmp_path / "tokenizer.json").write_text(json.dumps(spec))
    with pytest.raises(VocabularyError, match="parts of words"):
        load_vocabulary(f"hf:{tmp_path}")


def test_a_pre_tokenizer_that_drops_text_is_refused(tmp_path: Path) -> None:
    tokenizer = worlds.gpt2_style()
    tokenizer.pre_tokenizer = Whitespace()
    with pytest.raises(VocabularyError, match="does not give back"):
        load_vocabulary(worlds.write(tmp_path, tokenizer, "<|end|>"))


def test_many_threads(digits: Vocabulary) -> None:
    texts = [sample.encode()[n:] for sample in worlds.SAMPLES[:3] for n in range(50)]
    expected = [digits.encode(text) for text in texts]
    with ThreadPoolExecutor(4) as pool:
        assert list(pool.map(digits.encode, texts)) == expected
