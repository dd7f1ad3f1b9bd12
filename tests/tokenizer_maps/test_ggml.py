"""GGUF headers: written by the gguf package, read here, compared with the tokenizers inside."""

import json
import struct
from collections.abc import Sequence
from pathlib import Path

import gguf
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer

from tests.tokenizer_maps import worlds
from tests.tokenizer_maps.test_sentencepiece import BYTES, HEAD, bpe, written
from tokenizer_maps import Kind, Vocabulary, VocabularyError, load_vocabulary
from tokenizer_maps.ggml import PRETOKENIZERS, read_header
from tokenizer_maps.sentencepiece import Piece, PieceType

ROOT = Path(__file__).parents[2]
DEMO = ROOT / "adapter/demo/weights"


class Writing:
    """A GGUF file with a header only."""

    def __init__(self, path: Path, model: str) -> None:
        self.path = path
        self.to = gguf.GGUFWriter(path, "llama")
        self.to.add_tokenizer_model(model)

    def done(self) -> str:
        self.to.write_header_to_file()
        self.to.write_kv_data_to_file()
        self.to.close()
        return f"gguf:{self.path}"


def bytelevel(
    path: Path, tokenizer: Tokenizer, pre: str | None, controls: Sequence[str]
) -> Writing:
    """A byte-level tokenizer as llama.cpp's converter writes it, with one gap at the end."""
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    own = json.loads(tokenizer.to_str())["model"]["vocab"]
    types = [gguf.TokenType.NORMAL if t in own else gguf.TokenType.USER_DEFINED for t in tokens]
    for text in controls:
        types[ids[text]] = gguf.TokenType.CONTROL
    file = Writing(path, "gpt2")
    if pre is not None:
        file.to.add_tokenizer_pre(pre)
    file.to.add_token_list([*tokens, "[PAD0]"])
    file.to.add_token_types([*types, gguf.TokenType.UNUSED])
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    file.to.add_token_merges([" ".join(pair) for pair in merges])
    return file


def test_byte_level(tmp_path: Path, gpt: Vocabulary) -> None:
    file = bytelevel(tmp_path / "m", worlds.gpt2_style(), "gpt-2", ["<|end|>", "<|sys|>"])
    file.to.add_eos_token_id(0)
    file.to.add_eot_token_id(1)
    file.to.add_chat_template("T")
    vocabulary = load_vocabulary(file.done())
    assert vocabulary.tokens == (*gpt.tokens, b"")[: len(vocabulary.tokens)]
    assert vocabulary.specials == gpt.specials
    assert vocabulary.end == {0, 1}
    assert vocabulary.start == ()
    assert vocabulary.chat_template == "T"
    for text in worlds.SAMPLES:
        assert vocabulary.encode(text.encode()) == gpt.encode(text.encode())


def test_added_tokens_are_spelt_as_they_are(tmp_path: Path, digits: Vocabulary) -> None:
    file = bytelevel(tmp_path / "m", worlds.digit_style(), "qwen2", ["<s>", "</s>"])
    vocabulary = load_vocabulary(file.done())
    tool = vocabulary.id_of(b"<tool>")
    assert tool == digits.id_of(b"<tool>")
    assert tool is not None
    assert vocabulary.kinds[tool] is Kind.ADDED
    assert tool in vocabulary.encode(b"a<tool>b</s>")


@pytest.mark.parametrize("pre", sorted(PRETOKENIZERS))
def test_every_rule_gives_all_bytes_back(tmp_path: Path, pre: str) -> None:
    file = bytelevel(tmp_path / "m", worlds.gpt2_style(), pre, ["<|end|>", "<|sys|>"])
    vocabulary = load_vocabulary(file.done())
    for text in worlds.SAMPLES:
        data = text.encode() + b"\xff"
        assert vocabulary.decode(vocabulary.encode(data)) == data


@pytest.mark.parametrize(
    ("pre", "pieces"),
    [
        ("gpt-2", ["1234", " x", " "]),
        ("smollm", ["1", "2", "3", "4", " x", " "]),
        ("llama-bpe", ["123", "4", " x", " "]),
        ("qwen2", ["1", "2", "3", "4", " x", " "]),
        ("gpt-4o", ["123", "4", " x", " "]),
        ("tekken", ["1", "2", "3", "4", " x", " "]),
        ("deepseek-v3", ["123", "4", " x", " "]),
    ],
)
def test_rules_cut_numbers_as_their_models_do(pre: str, pieces: list[str]) -> None:
    rule = Tokenizer.from_str(
        json.dumps({"version": "1.0", "added_tokens": [], "pre_tokenizer": PRETOKENIZERS[pre]})[:-1]
        + ', "model": {"type": "BPE", "vocab": {}, "merges": []}}'
    ).pre_tokenizer
    assert [cut.replace("Ġ", " ") for cut, _ in rule.pre_tokenize_str("1234 x ")] == pieces


@pytest.mark.parametrize(("said", "start"), [(None, (0,)), (True, (0,)), (False, ())])
def test_start(tmp_path: Path, said: bool | None, start: tuple[int, ...]) -> None:
    file = bytelevel(tmp_path / "m", worlds.gpt2_style(), "llama-bpe", ["<|end|>", "<|sys|>"])
    file.to.add_bos_token_id(0)
    if said is not None:
        file.to.add_add_bos_token(said)
    assert load_vocabulary(file.done()).start == start


def test_whole_pretokens_where_the_rule_says_so(tmp_path: Path) -> None:
    tokenizer = worlds.gpt2_style()
    spec = json.loads(tokenizer.to_str())
    spec["model"]["vocab"]["Ġquixotic"] = len(spec["model"]["vocab"])
    reached = {}
    for pre in ("gpt-2", "llama-bpe"):
        file = bytelevel(tmp_path / pre, Tokenizer.from_str(json.dumps(spec)), pre, ["<|end|>"])
        vocabulary = load_vocabulary(file.done())
        reached[pre] = len(vocabulary.encode(b" quixotic")) == 1
    assert reached == {"gpt-2": False, "llama-bpe": True}


def pieces_file(path: Path, pieces: Sequence[Piece]) -> Writing:
    file = Writing(path, "llama")
    file.to.add_token_list([piece.text for piece in pieces])
    file.to.add_token_scores([piece.score for piece in pieces])
    file.to.add_token_types([int(piece.type) for piece in pieces])
    return file


def test_sentencepiece_style(tmp_path: Path) -> None:
    tool = Piece("<tool>", 0.0, PieceType.USER_DEFINED)
    pieces = [*HEAD, *BYTES, *bpe("▁t he ▁the ▁▁ 漢字"), tool]
    file = pieces_file(tmp_path / "m", pieces)
    file.to.add_bos_token_id(1)
    file.to.add_eos_token_id(2)
    vocabulary = load_vocabulary(file.done())
    twin = written(tmp_path / "sp", pieces)
    assert (vocabulary.tokens, vocabulary.kinds) == (twin.tokens, twin.kinds)
    assert (vocabulary.start, vocabulary.end) == (twin.start, twin.end)
    for text in (*worlds.SAMPLES, "<tool>▁"):
        assert vocabulary.encode(text.encode()) == twin.encode(text.encode())


def test_the_demo_s_file_has_the_demo_s_tokenizer() -> None:
    if not DEMO.is_dir():
        pytest.skip("the demo's weights are not here")
    ours = load_vocabulary(f"gguf:{DEMO / 'hosted.gguf'}")
    theirs = load_vocabulary(f"hf:{DEMO / 'hosted-tokenizer'}")
    assert ours.fingerprint == theirs.fingerprint
    assert (ours.start, ours.end) == (theirs.start, theirs.end)


@pytest.mark.parametrize("pre", [None, "default", "no-such-rule"])
def test_unknown_rules_are_refused(tmp_path: Path, pre: str | None) -> None:
    file = bytelevel(tmp_path / "m", worlds.gpt2_style(), pre, [])
    with pytest.raises(VocabularyError, match=r"not known here.*llama-bpe"):
        load_vocabulary(file.done())


@pytest.mark.parametrize("model", ["bert", "t5", "rwkv"])
def test_other_kinds_are_refused(tmp_path: Path, model: str) -> None:
    with pytest.raises(VocabularyError, match=f"{model} tokenizer: not supported"):
        load_vocabulary(Writing(tmp_path / "m", model).done())


def test_incomplete_tokenizers_are_refused(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="incomplete"):
        load_vocabulary(Writing(tmp_path / "m", "llama").done())
    uneven = pieces_file(tmp_path / "n", HEAD)
    uneven.to.add_key_value("tokenizer.ggml.unused", 1, gguf.GGUFValueType.UINT32)
    data = Path(uneven.done().removeprefix("gguf:")).read_bytes()
    (tmp_path / "n").write_bytes(data.replace(b"ggml.token_type", b"ggml.token_kind"))
    with pytest.raises(VocabularyError, match="incomplete"):
        load_vocabulary(f"gguf:{tmp_path / 'n'}")


def test_all_types_of_values_are_passed_over(tmp_path: Path) -> None:
    file = pieces_file(tmp_path / "m", HEAD)
    kinds = gguf.GGUFValueType
    for kind in (kinds.UINT8, kinds.INT8, kinds.UINT16, kinds.INT16, kinds.INT32, kinds.UINT64):
        file.to.add_key_value(f"tokenizer.{kind.name}", 7, kind)
    file.to.add_float64("tokenizer.half", 0.5)
    file.to.add_array("other.list", [1, 2, 3])
    file.to.add_bool("tokenizer.yes", True)
    file.done()
    header = read_header(tmp_path / "m")
    assert header["tokenizer.INT8"] == header["tokenizer.UINT64"] == 7
    assert header["tokenizer.half"] == 0.5
    assert header["tokenizer.yes"] is True
    assert "other.list" not in header


@pytest.mark.parametrize(
    "data",
    [
        b"",
        b"GGUF",
        b"GGUX" + struct.pack("<IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 1, 0, 0),
        b"GGUF" + struct.pack(">IQQ", 3, 0, 0),
        b"GGUF" + struct.pack("<IQQ", 3, 0, 1 << 60),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1 << 60) + b"key",
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<I", 13),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 9, 1),
        b"GGUF" + struct.pack("<IQQQ", 3, 0, 1, 1) + b"k" + struct.pack("<IIQ", 9, 4, 1 << 60),
    ],
)
def test_what_is_no_gguf_file_is_refused(tmp_path: Path, data: bytes) -> None:
    (tmp_path / "m").write_bytes(data)
    with pytest.raises(VocabularyError, match="cannot be read as a GGUF file"):
        load_vocabulary(f"gguf:{tmp_path / 'm'}")
    with pytest.raises(VocabularyError, match="cannot be read"):
        load_vocabulary(f"gguf:{tmp_path / 'none'}")


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> bytes:
    path = tmp_path_factory.mktemp("gguf") / "m"
    pieces_file(path, [*HEAD, *bpe("▁a ab")]).done()
    return path.read_bytes()


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_files_never_crash(
    whole: bytes, tmp_path_factory: pytest.TempPathFactory, data: st.DataObject
) -> None:
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    path = tmp_path_factory.getbasetemp() / "damaged"
    for damaged in (whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :], whole[:at]):
        path.write_bytes(damaged)
        try:
            load_vocabulary(f"gguf:{path}")
        except VocabularyError:
            continue
