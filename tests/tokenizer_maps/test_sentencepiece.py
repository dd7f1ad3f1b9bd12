"""sentencepiece models: the file by hand, both algorithms, and sentencepiece's own answers."""

import json
import math
import random
import struct
from collections.abc import Iterable
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers

from tests.tokenizer_maps import worlds
from tests.tokenizer_maps.test_vocabulary import MIXED
from tokenizer_maps import Kind, Vocabulary, VocabularyError, load_vocabulary
from tokenizer_maps.sentencepiece import Piece, PieceType, parse

N, U, C, D, X, B = PieceType
BYTES = [Piece(f"<0x{byte:02X}>", 0.0, B) for byte in range(256)]
HEAD = [Piece("<unk>", 0.0, U), Piece("<s>", 0.0, C), Piece("</s>", 0.0, C)]


def message(fields: Iterable[tuple[int, int | float | str | bytes]]) -> bytes:
    """A protobuf message: ints as varints, floats as 32 bits, the rest with its length."""
    data = b""
    for number, value in fields:
        if isinstance(value, int):
            data += varint(number << 3) + varint(value & (1 << 64) - 1)
        elif isinstance(value, float):
            data += varint(number << 3 | 5) + struct.pack("<f", value)
        else:
            raw = value.encode() if isinstance(value, str) else value
            data += varint(number << 3 | 2) + varint(len(raw)) + raw
    return data


def varint(value: int) -> bytes:
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    return bytes([*out, value])


def model(pieces: Iterable[Piece], algorithm: int, **more: int) -> bytes:
    """A model file; ``algorithm``: 1 unigram, 2 BPE."""
    parts = [(1, message([(1, p.text), (2, p.score), (3, int(p.type))])) for p in pieces]
    trainer = [(3, algorithm), *((int(key[1:]), value) for key, value in more.items())]
    return message([*parts, (2, message(trainer)), (3, message([(3, 1)]))])


def written(folder: Path, pieces: Iterable[Piece], algorithm: int = 2, **more: int) -> Vocabulary:
    folder.mkdir(exist_ok=True)
    (folder / "tokenizer.model").write_bytes(model(pieces, algorithm, **more))
    return load_vocabulary(f"sentencepiece:{folder / 'tokenizer.model'}")


def spelt(vocabulary: Vocabulary, text: str) -> list[str]:
    return [vocabulary.tokens[i].decode("latin-1") for i in vocabulary.encode(text.encode())]


def bpe(words: str) -> list[Piece]:
    """Pieces merged in the order given, then their characters."""
    merged = words.split()
    single = sorted(set("".join(merged)))
    return [Piece(text, -float(n), N) for n, text in enumerate([*merged, *single])]


def test_bpe_merges_by_score(tmp_path: Path) -> None:
    vocabulary = written(tmp_path, [*HEAD, *BYTES, *bpe("▁a ab ▁▁")])
    assert spelt(vocabulary, " ab") == [" a", "b"]
    assert spelt(vocabulary, "ab") == ["ab"]
    assert spelt(vocabulary, "aab  b") == ["a", "ab", "  ", "b"]


def test_of_equal_scores_the_leftmost_is_merged(tmp_path: Path) -> None:
    pieces = [Piece("aa", -1.0, N), Piece("a", -2.0, N)]
    assert spelt(written(tmp_path, [*HEAD, *pieces]), "aaaaa") == ["aa", "aa", "a"]


def test_unused_pieces_are_taken_apart(tmp_path: Path) -> None:
    pieces = [*bpe("ab abc"), Piece("abcd", -9.0, X), Piece("d", -8.0, N)]
    vocabulary = written(tmp_path, [*HEAD, *pieces])
    assert spelt(vocabulary, "abcd") == ["abc", "d"]
    assert vocabulary.kinds[vocabulary.tokens.index(b"", 3)] is Kind.NONE


@pytest.mark.parametrize("algorithm", [1, 2])
def test_an_unused_character_is_spelt_by_its_bytes(tmp_path: Path, algorithm: int) -> None:
    pieces = [*HEAD, *BYTES, *bpe("ab"), Piece("c", -1.0, X)]
    vocabulary = written(tmp_path, pieces, algorithm)
    assert vocabulary.encode(b"abc")[-1] == 3 + ord("c")
    assert vocabulary.decode(vocabulary.encode(b"cabc")) == b"cabc"


def test_symbols_of_the_user_stay_whole(tmp_path: Path) -> None:
    pieces = [*bpe("ab bc abc"), Piece("b▁", 0.0, D), Piece("b▁c", 0.0, D)]
    vocabulary = written(tmp_path, [*HEAD, *BYTES, *pieces])
    assert spelt(vocabulary, "ab cab") == ["a", "b c", "ab"]


@pytest.mark.parametrize("algorithm", [1, 2])
def test_bytes_in_place_of_what_has_no_piece(tmp_path: Path, algorithm: int) -> None:
    vocabulary = written(tmp_path, [*HEAD, *BYTES, *bpe("▁a")], algorithm)
    assert spelt(vocabulary, " aé▁\n") == [" a", "Ã", "©", "â", "\x96", "\x81", "\n"]
    assert vocabulary.decode(vocabulary.encode(b"a\xff \xe2\x96")) == b"a\xff \xe2\x96"


@pytest.mark.parametrize("algorithm", [1, 2])
def test_without_bytes_they_are_left_out(tmp_path: Path, algorithm: int) -> None:
    vocabulary = written(tmp_path, [*HEAD, *bpe("▁a")], algorithm)
    assert spelt(vocabulary, "aéa") == ["a", "a"]


def test_unigram_takes_the_best_path(tmp_path: Path) -> None:
    scores = {"a": -2.0, "b": -2.0, "ab": -3.5, "abc": -9.0, "c": -2.0, "bc": -1.0, "▁": -1.0}
    pieces = [Piece(text, score, N) for text, score in scores.items()]
    vocabulary = written(tmp_path, [*HEAD, *pieces, Piece("cc", 0.0, D), Piece("aa", 0.0, X)], 1)
    assert spelt(vocabulary, "abc aab") == ["a", "bc", " ", "a", "ab"]
    assert spelt(vocabulary, "ccc") == ["cc", "c"]


@settings(max_examples=200, deadline=None)
@given(data=MIXED)
def test_any_bytes_survive(tmp_path_factory: pytest.TempPathFactory, data: bytes) -> None:
    folder = tmp_path_factory.getbasetemp() / "pieces"
    pieces = [*HEAD, *BYTES, *bpe("▁t he ▁the ▁▁ ▁▁▁▁ 漢字 re"), Piece("<tool>", 0.0, D)]
    for algorithm in (1, 2):
        vocabulary = written(folder, pieces, algorithm)
        ids = vocabulary.encode(data)
        assert vocabulary.decode(ids) == data
        assert all(vocabulary.spells(i) for i in ids)


def test_long_runs_are_quick(tmp_path: Path) -> None:
    vocabulary = written(tmp_path, [*HEAD, *BYTES, *bpe("▁▁ ▁▁▁▁ aa")])
    data = b" " * 20_000 + b"a" * 20_000
    assert vocabulary.decode(vocabulary.encode(data)) == data
    assert len(vocabulary.encode(data)) == 15_000


def test_facts(tmp_path: Path) -> None:
    pieces = [*HEAD, *BYTES, *bpe("▁a")]
    vocabulary = written(tmp_path, pieces)
    assert vocabulary.start == (1,)
    assert vocabulary.end == {2}
    assert dict(vocabulary.specials) == {"<unk>": 0, "<s>": 1, "</s>": 2}
    assert not {0, 1, 2} & set(vocabulary.encode(b"<s></s><unk>"))
    assert vocabulary.id_of(b"a") == 3 + ord("a")  # the byte, which comes before the piece
    assert len(vocabulary.encode(b"a")) == 1
    assert load_vocabulary(f"sentencepiece:{tmp_path}").fingerprint == vocabulary.fingerprint
    assert written(tmp_path, pieces, 1).fingerprint != vocabulary.fingerprint
    assert written(tmp_path, pieces, 2, _41=-1, _42=0).start == ()


def test_files_beside_the_model(tmp_path: Path) -> None:
    config = {"add_bos_token": False, "eos_token": "<s>", "chat_template": "T"}
    (tmp_path / "tokenizer_config.json").write_text(json.dumps(config))
    (tmp_path / "generation_config.json").write_text('{"eos_token_id": 7}')
    vocabulary = written(tmp_path, [*HEAD, *BYTES])
    assert vocabulary.start == ()
    assert vocabulary.end == {1, 7}
    assert vocabulary.chat_template == "T"


@pytest.mark.parametrize(
    ("data", "says"),
    [
        (b"", "0 pieces"),
        (b"no model at all", "no sentencepiece model"),
        (model(HEAD, 2)[:-3], "no sentencepiece model"),
        (model(HEAD, 3), "word model"),
        (model(HEAD, 2, _41=3), "beyond"),
        (model([Piece("a", 0.0, B)], 2, _41=-1, _42=-1), "is none"),
        (message([(1, message([(1, b"\xff")]))]), "no sentencepiece model"),
        (message([(1, message([(3, 99)]))]), "no sentencepiece model"),
        (message([(1, 5)]), "no sentencepiece model"),
    ],
)
def test_what_is_no_model_is_refused(tmp_path: Path, data: bytes, says: str) -> None:
    (tmp_path / "tokenizer.model").write_bytes(data)
    with pytest.raises(VocabularyError, match=says):
        load_vocabulary(f"sentencepiece:{tmp_path}")


def test_no_file(tmp_path: Path) -> None:
    with pytest.raises(VocabularyError, match="cannot be read"):
        load_vocabulary(f"sentencepiece:{tmp_path / 'none.model'}")


@settings(max_examples=300, deadline=None)
@given(data=st.data())
def test_damaged_models_never_crash(data: st.DataObject) -> None:
    whole = model([*HEAD, *bpe("▁a ab")], 2)
    at = data.draw(st.integers(0, len(whole) - 1))
    bit = 1 << data.draw(st.integers(0, 7))
    changed = whole[:at] + bytes([whole[at] ^ bit]) + whole[at + 1 :]
    for damaged in (changed, whole[:at], whole + changed[:at]):
        try:
            parse(damaged)
        except VocabularyError:
            continue


@pytest.mark.parametrize("kind", ["bpe", "unigram"])
def test_agrees_with_sentencepiece(tmp_path: Path, kind: str) -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the sentencepiece package")
    text = tmp_path / "text.txt"
    text.write_text("\n".join(line for line in worlds.CORPUS[2:] for line in line.splitlines()))
    sentencepiece.SentencePieceTrainer.train(
        input=str(text),
        model_prefix=str(tmp_path / "m"),
        model_type=kind,
        vocab_size=480,
        hard_vocab_limit=False,
        byte_fallback=True,
        normalization_rule_name="identity",
        remove_extra_whitespaces=False,
        add_dummy_prefix=False,
        user_defined_symbols=["<tool>", "  "],
        minloglevel=2,
    )
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(tmp_path / "m.model"))
    ours = load_vocabulary(f"sentencepiece:{tmp_path / 'm.model'}")
    rng, ties = random.Random(1), 0
    source = "".join(worlds.SAMPLES) + "<tool>  é<tool>"
    for _ in range(2000):
        begin = rng.randrange(len(source))
        piece = source[begin : begin + rng.randint(1, 60)]
        found, expected = ours.encode(piece.encode()), theirs.encode(piece)
        if list(found) != expected:  # two best paths of a unigram model: rounding settles it
            assert kind == "unigram"
            sums = [math.fsum(map(theirs.get_score, ids)) for ids in (found, expected)]
            assert sums[0] == pytest.approx(sums[1], abs=1e-6)
            ties += 1
    assert ties <= 5


LLAMA = decoders.Sequence(
    [
        decoders.Replace("▁", " "),
        decoders.ByteFallback(),
        decoders.Fuse(),
        decoders.Strip(" ", 1, 0),
    ]
)


def llama_style(fallback: bool = True) -> Tokenizer:
    """Llama 2's JSON: a normaliser that writes ▁ and puts one first, no pre-tokenizer."""
    pieces = [*HEAD, *(BYTES if fallback else ()), *bpe("▁t he ▁the ▁▁ in")]
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    merges = [("▁", "t"), ("h", "e"), ("▁t", "he"), ("▁", "▁"), ("i", "n")]
    bpe_model = models.BPE(
        vocab, merges, unk_token="<unk>", byte_fallback=fallback, fuse_unk=fallback
    )
    tokenizer = Tokenizer(bpe_model)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    tokenizer.decoder = LLAMA
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    return tokenizer


def test_huggingface_in_the_style_of_sentencepiece(tmp_path: Path) -> None:
    tokenizer = llama_style()
    tokenizer.add_tokens(["<in the>"])
    vocabulary = load_vocabulary(worlds.write(tmp_path / "hf", tokenizer, "</s>"))
    twin = written(tmp_path / "sp", [*HEAD, *BYTES, *bpe("▁t he ▁the ▁▁ in")])
    assert vocabulary.tokens[:-1] == twin.tokens
    assert spelt(vocabulary, "the  the in") == ["t", "he", " ", " the", " ", "in"]
    assert vocabulary.tokens[-1] == b"<in the>"
    assert vocabulary.kinds[-1] is Kind.ADDED
    for text in (*worlds.SAMPLES, "</s>▁<s>\xff"):
        assert vocabulary.encode(text.encode()) == twin.encode(text.encode())
    assert vocabulary.decode(vocabulary.encode(b"<s>\xff\xe2")) == b"<s>\xff\xe2"


def test_an_added_token_with_spaces_is_found(tmp_path: Path) -> None:
    tokenizer = llama_style()
    tokenizer.add_tokens(["in the"])
    vocabulary = load_vocabulary(worlds.write(tmp_path, tokenizer, "</s>"))
    assert vocabulary.id_of(b"in the") in vocabulary.encode(b"a in the b")
    assert vocabulary.decode(vocabulary.encode(b"a in the b")) == b"a in the b"


@pytest.mark.parametrize("scheme", ["always", "first", "never"])
def test_metaspace_puts_nothing_first(tmp_path: Path, scheme: str) -> None:
    tokenizer = llama_style()
    tokenizer.normalizer = normalizers.NFKC()
    tokenizer.pre_tokenizer = pre_tokenizers.Metaspace(prepend_scheme=scheme)
    for decoder in (decoders.Metaspace(prepend_scheme=scheme), LLAMA):
        tokenizer.decoder = decoder
        vocabulary = load_vocabulary(worlds.write(tmp_path, tokenizer, "</s>"))
        for text in ("the  the", " ﬁ▁"):
            assert vocabulary.decode(vocabulary.encode(text.encode())) == text.encode()


def test_without_byte_fallback_characters_are_left_out(tmp_path: Path) -> None:
    tokenizer = llama_style(fallback=False)
    vocabulary = load_vocabulary(worlds.write(tmp_path, tokenizer, "</s>"))
    assert vocabulary.decode(vocabulary.encode("the é in".encode())) == b"the  in"


def test_huggingface_unigram(tmp_path: Path) -> None:
    scores = [("<unk>", 0.0), ("<s>", 0.0), *((p.text, p.score) for p in BYTES)]
    scores += [("▁the", -2.0), ("▁", -3.0), ("t", -4.0), ("he", -5.0), ("h", -6.0), ("e", -6.0)]
    tokenizer = Tokenizer(models.Unigram(scores, 0, byte_fallback=True))
    tokenizer.decoder = LLAMA
    tokenizer.add_special_tokens(["<s>"])
    tokenizer.add_tokens(["<tool box>"])
    vocabulary = load_vocabulary(worlds.write(tmp_path, tokenizer, "<s>"))
    assert spelt(vocabulary, "the the<tool box>") == ["t", "he", " the", "<tool box>"]
    assert dict(vocabulary.specials) == {"<s>": 1}
    assert vocabulary.end == {1}
    for text in ("<s>", "<unk> <0x41>", "é▁"):
        assert vocabulary.decode(vocabulary.encode(text.encode())) == text.encode()
