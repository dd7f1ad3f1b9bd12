"""Vocabularies of real models: what they hold, that text survives them, how they cover each other.

Texts: English (pydoc_data.topics), Python (the standard library), Markdown (huggingface_hub's
templates, openai's pages) and other scripts (the UTF-8 files of test.cjkencodings where they are
installed, and o200k's own Chinese, Cyrillic, Japanese and Korean tokens in random order).
"""

import importlib.util
import json
import pydoc_data.topics
import random
import re
import time
from collections.abc import Iterator
from functools import cache
from pathlib import Path

import pytest
from tokenizers import Tokenizer, decoders, models, normalizers

import tokenizer_maps
from tests.support.vocabularies import FOLDER, PATTERNS, SOURCES, missing, real
from tests.tokenizer_maps import worlds
from tokenizer_maps import TokenMap, Vocabulary, load_vocabulary
from tokenizer_maps.coverage import shape
from tokenizer_maps.ggml import PRETOKENIZERS
from tokenizer_maps.sentencepiece import PieceType, parse
from tokenizer_maps.verify import KIND_BYTES, running, verify

pytestmark = pytest.mark.vocabularies

SCRIPTS = re.compile("[\u0400-\u04ff\u3040-\u30ff\u4e00-\u9fff\uac00-\ud7af]")
# tokens, duplicates, mean length, p99, longest, % above 16 bytes, no UTF-8
SHAPES = {
    "o200k": (199_998, 0, 6.99, 19, 128, 2.0, 1_562),
    "cl100k": (100_256, 0, 6.42, 16, 128, 0.8, 773),
    "r50k": (50_256, 0, 6.38, 14, 128, 0.1, 344),
    "Qwen2": (151_643, 0, 6.44, 18, 128, 1.3, 1_448),
    "Llama-3": (128_000, 0, 6.49, 17, 128, 1.0, 1_352),
    "Mistral": (31_997, 125, 5.36, 13, 25, 0.1, 128),
    "DeepSeek": (127_997, 0, 6.53, 15, 128, 0.7, 1_470),
}
# % of the upstream's tokens that are one pair token, % that no single pair token covers
COVERAGE = {
    ("o200k", "Llama-3"): (51.6, 44.6),
    ("o200k", "Qwen2"): (49.4, 46.6),
    ("o200k", "r50k"): (21.4, 75.4),
    ("cl100k", "Llama-3"): (100.0, 0.0),
    ("cl100k", "Qwen2"): (98.9, 1.1),
    ("o200k", "DeepSeek"): (41.1, 54.9),
    ("o200k", "Mistral"): (14.9, 82.3),
}
FINGERPRINTS = {"Mistral": "22e651157c42825f", "DeepSeek": "44a710352254463c"}


def needed(*names: str) -> None:
    for name in names:
        reason = missing(name)
        if reason:
            pytest.skip(reason)


@pytest.fixture(params=SOURCES)
def name(request: pytest.FixtureRequest) -> str:
    found: str = request.param
    needed(found)
    return found


@cache
def made(upstream: str, pair: str) -> TokenMap:
    needed(upstream, pair)
    return TokenMap.build(real(upstream), real(pair))


def _package(name: str, pattern: str) -> Iterator[Path]:
    found = importlib.util.find_spec(name)
    for place in (found and found.submodule_search_locations) or ():
        yield from sorted(Path(place).rglob(pattern))


@cache
def texts() -> dict[str, bytes]:
    library = Path(json.__file__).parents[1]
    markdown = [*_package("huggingface_hub", "*.md"), *_package("openai", "*.md")]
    scripts = [*_package("test.cjkencodings", "*-utf8.txt")]
    found = {
        "English": "\n".join(pydoc_data.topics.topics.values()).encode(),
        "Python": b"".join(file.read_bytes() for file in sorted(library.glob("*.py"))),
        "Markdown": b"".join(file.read_bytes() for file in markdown),
        "other scripts": b"".join(file.read_bytes() for file in scripts) + _words(),
    }
    return {kind: data[:KIND_BYTES] for kind, data in found.items() if data}


def _words() -> bytes:
    if missing("o200k"):
        return b""
    decoded = (token.decode("utf-8", "ignore") for token in real("o200k").tokens)
    words = [word for word in decoded if SCRIPTS.search(word)]
    return "".join(random.Random(11).choices(words, k=40_000)).encode()


def test_shapes(name: str) -> None:
    found = shape(real(name))
    rounded = round(found.mean, 2), found.p99, found.longest
    long = round(100 * found.long / found.tokens, 1)
    assert (found.tokens, found.duplicates, *rounded, long, found.invalid) == SHAPES[name]


@pytest.mark.parametrize(("upstream", "pair"), COVERAGE)
def test_coverage(upstream: str, pair: str) -> None:
    found = made(upstream, pair).coverage
    tokens = found.upstream.tokens
    shares = tuple(round(100 * n / tokens, 1) for n in (found.exact, found.uncovered))
    assert shares == COVERAGE[upstream, pair]
    assert found.nested == ((upstream, pair) == ("cl100k", "Llama-3"))
    assert made(upstream, pair).nested == found.nested
    assert not found.identical


def test_scripts_a_pair_has_no_characters_of() -> None:
    assert made("cl100k", "Llama-3").torn == made("cl100k", "Qwen2").torn == {}
    found = {pair: made("o200k", pair).torn for pair in ("r50k", "Llama-3")}
    assert {"CJK", "HANGUL", "CYRILLIC"} <= found["r50k"].keys()
    assert not {"CJK", "HANGUL", "CYRILLIC", "LATIN"} & found["Llama-3"].keys()
    part, every = found["Llama-3"]["BENGALI"]
    assert 0.9 * every < part < every


def test_what_show_knows_of_them() -> None:
    file = Path(tokenizer_maps.__file__).with_name("known.json")
    named = {"GPT-2": "r50k", "Mistral v1": "Mistral"}
    found = {}
    for pair in json.loads(file.read_text("utf-8")):
        key = pair["upstream"], named.get(pair["pair"], pair["pair"])
        found[key] = tuple(round(100 * pair[n], 1) for n in ("exact", "uncovered"))
        assert pair["nested"] == (key == ("cl100k", "Llama-3"))
    assert found == COVERAGE


def test_cl100k_tokens_have_their_ids_in_llama_3() -> None:
    token_map = made("cl100k", "Llama-3")
    tokens = token_map.upstream.tokens
    ids = [i for i in range(len(tokens)) if token_map.upstream.spells(i)]
    assert len(ids) == 100_256
    assert all(token_map.pair.tokens[i] == tokens[i] for i in ids)


def test_what_qwen_lacks_of_cl100k_are_numbers() -> None:
    token_map = made("cl100k", "Qwen2")
    tokens = [t for t in token_map.upstream.tokens if t and token_map.pair.id_of(t) is None]
    assert len(tokens) == 1_100
    assert all(re.fullmatch(rb"\d{2,3}", token) for token in tokens)


def test_fingerprints(name: str) -> None:
    vocabulary = real(name)
    assert real.__wrapped__(name).fingerprint == vocabulary.fingerprint
    assert vocabulary.fingerprint.startswith(FINGERPRINTS.get(name, ""))
    others = [real(other).fingerprint for other in SOURCES if other != name and not missing(other)]
    assert vocabulary.fingerprint not in others


def roundtrip(vocabulary: Vocabulary, count: int) -> list[bytes]:
    """The random substrings of all kinds of text that do not come back; none should."""
    rng = random.Random(5)
    failed = []
    for data in texts().values():
        for _ in range(count):
            begin = rng.randrange(len(data))
            piece = data[begin : begin + rng.randint(1, 200)]
            ids = vocabulary.encode(piece)
            if vocabulary.decode(ids) != piece or not all(map(vocabulary.spells, ids)):
                failed.append(piece)
    return failed


def test_substrings_survive(name: str) -> None:
    assert len(texts()) == 4
    assert roundtrip(real(name), 1_000) == []


@pytest.mark.full
def test_many_substrings_survive(name: str) -> None:
    assert roundtrip(real(name), 10_000) == []


@pytest.mark.parametrize(
    ("upstream", "pair"), [("cl100k", "Qwen2"), ("o200k", "Mistral"), ("Mistral", "r50k")]
)
def test_maps_hold(upstream: str, pair: str) -> None:
    for check in verify(made(upstream, pair), texts(), samples=200):
        assert check.failed == 0, check
        assert check.tested > 0


def test_duplicates_are_all_in_their_range() -> None:
    token_map = made("o200k", "Mistral")
    mistral = token_map.pair
    low, high = token_map.span(b"a")
    same = [i for i in token_map.order[low:high].tolist() if mistral.tokens[i] == b"a"]
    assert len(same) == 2
    assert same[0] == mistral.id_of(b"a")
    assert mistral.encode(b"a") == (same[1],)


def test_running_text() -> None:
    for line in running(made("cl100k", "Llama-3"), texts()):
        assert line.known == 1.0
        assert line.first > 0.999  # not 1: a cut may fall elsewhere next to half a character
        assert line.aligned > (0.6 if line.kind == "other scripts" else 0.99)


def test_built_and_loaded_in_time(tmp_path: Path) -> None:
    needed("o200k", "Llama-3")
    began = time.process_time()
    built = TokenMap.build(real("o200k"), real("Llama-3"))
    built.save(tmp_path / "a")
    assert time.process_time() - began < 5

    def load() -> float:
        began = time.process_time()
        TokenMap.load(tmp_path / "a", built.upstream, built.pair)
        return time.process_time() - began

    assert min(load() for _ in range(5)) < 0.05


def test_mistral_as_sentencepiece_does() -> None:
    sentencepiece = pytest.importorskip("sentencepiece", reason="needs the sentencepiece package")
    needed("Mistral")
    theirs = sentencepiece.SentencePieceProcessor(model_file=str(FOLDER / "mistral.model"))
    rng = random.Random(2)
    for data in texts().values():
        text = data.decode("utf-8", "ignore").replace("▁", "")
        for _ in range(500):
            begin = rng.randrange(len(text))
            piece = "\n" + text[begin : begin + rng.randint(1, 80)]
            dummy, *expected = theirs.encode(piece)  # a line's start hides the dummy prefix
            assert theirs.id_to_piece(dummy) == "▁"
            assert list(real("Mistral").encode(piece.encode())) == expected


def test_mistral_as_a_tokenizer_json(tmp_path: Path) -> None:
    """The conversion of transformers: every way to make a piece is a merge, by its score."""
    needed("Mistral")
    pieces = parse((FOLDER / "mistral.model").read_bytes()).pieces
    vocab = {piece.text: i for i, piece in enumerate(pieces)}
    merges = [
        (piece.text[:at], piece.text[at:], piece.score)
        for piece in pieces
        for at in range(1, len(piece.text))
        if piece.type is PieceType.NORMAL and {piece.text[:at], piece.text[at:]} <= vocab.keys()
    ]
    merges.sort(key=lambda merge: (merge[2], len(merge[0]), len(merge[1])), reverse=True)
    bpe = models.BPE(
        vocab, [merge[:2] for merge in merges], unk_token="<unk>", byte_fallback=True, fuse_unk=True
    )
    tokenizer = Tokenizer(bpe)
    tokenizer.normalizer = normalizers.Sequence(
        [normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")]
    )
    strip = decoders.Strip(" ", 1, 0)
    steps = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), strip]
    tokenizer.decoder = decoders.Sequence(steps)
    tokenizer.add_special_tokens(["<unk>", "<s>", "</s>"])
    found = load_vocabulary(worlds.write(tmp_path, tokenizer, "</s>"))
    assert found.tokens == real("Mistral").tokens
    assert found.kinds == real("Mistral").kinds
    for data in texts().values():
        assert found.encode(data[:30_000]) == real("Mistral").encode(data[:30_000])


def test_rules_of_gguf_files_are_those_of_the_models() -> None:
    for pre, name in (("llama-bpe", "Llama-3"), ("qwen2", "Qwen2")):
        assert PRETOKENIZERS[pre]["pretokenizers"][0]["pattern"] == {"Regex": PATTERNS[name]}
    needed("DeepSeek")
    spec = json.loads((FOLDER / "deepseek.json").read_text("utf-8"))
    ours = Tokenizer.from_str(json.dumps(spec | {"pre_tokenizer": PRETOKENIZERS["deepseek-v3"]}))
    theirs = Tokenizer.from_str(json.dumps(spec))
    for data in texts().values():
        text = data[:50_000].decode("utf-8", "ignore")
        assert ours.encode(text).ids == theirs.encode(text).ids


def test_deepseek_by_its_directory(tmp_path: Path) -> None:
    needed("DeepSeek")
    (tmp_path / "tokenizer.json").write_bytes((FOLDER / "deepseek.json").read_bytes())
    found = load_vocabulary(f"hf:{tmp_path}")
    assert found.fingerprint == real("DeepSeek").fingerprint
    assert sum(kind == 1 for kind in found.kinds) == 53
