"""The tokenizers inside GGUF files as vocabularies; only the file's header is read."""

import struct
from collections.abc import Mapping
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any

from tokenizer_maps.beside import Json
from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.huggingface import from_spec
from tokenizer_maps.sentencepiece import Piece, PieceType, from_pieces
from tokenizer_maps.vocabulary import Vocabulary

MAGIC = b"GGUF"
VERSIONS = (2, 3)
_KEYS = "tokenizer."
# type number of a value -> its struct format; 8 is a string, 9 an array
_SCALARS = dict(zip((0, 1, 2, 3, 4, 5, 6, 7, 10, 11, 12), "BbHhIif?Qqd", strict=True))
_STRING, _ARRAY = 8, 9

_GPT2: Json = {"type": "ByteLevel", "add_prefix_space": False, "trim_offsets": True}
_WORDS = r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+"
_REST = r" ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_CASES = (
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]*[\p{Ll}\p{Lm}\p{Lo}\p{M}]+%s|"
    r"[^\r\n\p{L}\p{N}]?[\p{Lu}\p{Lt}\p{Lm}\p{Lo}\p{M}]+[\p{Ll}\p{Lm}\p{Lo}\p{M}]*%s|"
)
_SLASHES = r" ?[^\s\p{L}\p{N}]+[\r\n/]*|\s*[\r\n]+|\s+(?!\S)|\s+"
_SUFFIX = "(?i:'s|'t|'re|'ve|'m|'ll|'d)?"
_DEEPSEEK = (
    r"[!\"#$%&'()*+,\-./:;<=>?@\[\\\]^_`{|}~][A-Za-z]+|[^\r\n\p{L}\p{P}\p{S}]?[\p{L}\p{M}]+|"
    r" ?[\p{P}\p{S}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def _split(*patterns: str) -> Json:
    """Cut by one regex after the other, then spell the pieces in bytes."""
    steps: list[Json] = [
        {"type": "Split", "pattern": {"Regex": p}, "behavior": "Isolated", "invert": False}
        for p in patterns
    ]
    return {"type": "Sequence", "pretokenizers": [*steps, _GPT2 | {"use_regex": False}]}


_DIGITS: Json = {"type": "Digits", "individual_digits": True}
_FAMILIES: dict[str, tuple[str, Json]] = {
    "gpt-2": ("gpt-2 phi-2 mpt olmo jais roberta-bpe", _GPT2 | {"use_regex": True}),
    "smollm": (
        "smollm starcoder refact command-r codeshell exaone",
        {"type": "Sequence", "pretokenizers": [_DIGITS, _GPT2 | {"use_regex": True}]},
    ),
    "llama-bpe": (
        "llama-bpe llama3 llama-v3 falcon3",
        _split(rf"{_WORDS}|\p{{N}}{{1,3}}|{_REST}"),
    ),
    "qwen2": ("qwen2 stablelm2", _split(rf"{_WORDS}|\p{{N}}|{_REST}")),
    "deepseek-v3": ("deepseek-v3", _split(r"\p{N}{1,3}", "[一-龥\u3040-ゟ゠-ヿ]+", _DEEPSEEK)),
    "gpt-4o": ("gpt-4o", _split(rf"{_CASES % (_SUFFIX, _SUFFIX)}\p{{N}}{{1,3}}|{_SLASHES}")),
    "tekken": ("tekken", _split(rf"{_CASES % ('', '')}\p{{N}}|{_SLASHES}")),
}
# tokenizer.ggml.pre -> pre-tokenizer, by the names of llama.cpp and the regexes of the models
PRETOKENIZERS = {name: made for names, made in _FAMILIES.values() for name in names.split()}
# What llama.cpp takes whole pretokens for, where the header cannot say it; also: <s> is put first.
_WHOLE = {"llama-bpe", "llama3", "llama-v3", "falcon3", "tekken"}


def read_gguf(file: Path) -> Vocabulary:
    """The tokenizer in the header of ``file``: byte-level BPE, or in the style of sentencepiece.

    Raises VocabularyError where the file is missing, damaged, or holds another kind.
    """
    header = read_header(file)
    model = header.get("tokenizer.ggml.model")
    try:
        if model == "gpt2":
            return _bytelevel(header, str(file))
        if model == "llama":
            return _pieces(header)
    except (KeyError, TypeError, IndexError, ValueError) as error:
        raise VocabularyError(f"{file} has an incomplete tokenizer: {error!r}") from error
    raise VocabularyError(
        f"{file} has a {model} tokenizer: not supported, only gpt2 (byte-level BPE) and llama "
        "(sentencepiece) are"
    )


def _bytelevel(header: Mapping[str, Any], where: str) -> Vocabulary:
    pre = header.get("tokenizer.ggml.pre")
    if pre not in PRETOKENIZERS:
        raise VocabularyError(
            f"{where} cuts its text by the rule {pre!r}, which is not known here: use the model's "
            f"tokenizer.json; known are {', '.join(PRETOKENIZERS)}"
        )
    texts, types = header["tokenizer.ggml.tokens"], _types(header)
    rows = list(enumerate(zip(texts, types, strict=True)))
    special = (PieceType.CONTROL, PieceType.UNKNOWN)
    added = [
        {"id": i, "content": text, "special": kind in special, "normalized": False}
        | dict.fromkeys(("single_word", "lstrip", "rstrip"), False)
        for i, (text, kind) in rows
        if kind in (*special, PieceType.USER_DEFINED)
    ]
    kept = (PieceType.NORMAL, PieceType.BYTE)
    spec = {
        "version": "1.0",
        "added_tokens": added,
        "normalizer": None,
        "pre_tokenizer": PRETOKENIZERS[pre],
        "decoder": _GPT2 | {"use_regex": True},
        "model": {
            "type": "BPE",
            "vocab": {text: i for i, (text, kind) in rows if kind in kept},
            "merges": header["tokenizer.ggml.merges"],
            "ignore_merges": pre in _WHOLE,
        },
    }
    start = _start(header, default=pre in _WHOLE)
    names = [text for i, (text, _) in rows if i in start]
    config = {"add_bos_token": True, "bos_token": names[0]} if names else {}
    template = header.get("tokenizer.chat_template")
    end = _end(header)
    return from_spec(spec, where, config=config, end=lambda _: end, chat_template=template)


def _pieces(header: Mapping[str, Any]) -> Vocabulary:
    columns = (header[f"tokenizer.ggml.{name}"] for name in ("tokens", "scores"))
    rows = zip(*columns, _types(header), strict=True)
    return from_pieces(
        [Piece(text, score, kind) for text, score, kind in rows],
        unigram=False,
        start=_start(header, default=True),
        end=_end(header),
        chat_template=header.get("tokenizer.chat_template"),
        normaliser=None,
    )


def _types(header: Mapping[str, Any]) -> list[PieceType]:
    return [PieceType(number) for number in header["tokenizer.ggml.token_type"]]


def _start(header: Mapping[str, Any], *, default: bool) -> tuple[int, ...]:
    first = header.get("tokenizer.ggml.bos_token_id")
    wanted = header.get("tokenizer.ggml.add_bos_token", default)
    return (first,) if wanted and first is not None else ()


def _end(header: Mapping[str, Any]) -> frozenset[int]:
    """Of a text, of a turn, of a message."""
    found = [header.get(f"tokenizer.ggml.{name}_token_id") for name in ("eos", "eot", "eom")]
    return frozenset(i for i in found if i is not None)


def read_header(file: Path) -> dict[str, Any]:
    """The values in the header of a GGUF file whose names start with "tokenizer.".

    Raises VocabularyError.
    """
    try:
        with file.open("rb") as opened, mmap(opened.fileno(), 0, access=ACCESS_READ) as data:
            return _Reader(data).header()
    except (OSError, ValueError, struct.error, OverflowError, MemoryError) as error:
        raise VocabularyError(f"{file} cannot be read as a GGUF file: {error}") from error


class _Reader:
    """A cursor in a file's bytes."""

    def __init__(self, data: mmap) -> None:
        self._data = data
        self._at = 0

    def header(self) -> dict[str, Any]:
        magic, version, _, count = self._take("4sIQQ")
        if magic != MAGIC or version not in VERSIONS:
            raise ValueError(f"it starts with {magic!r}, version {version}")
        found = {}
        for _ in range(count):
            key, kind = self._string(), self._take("I")[0]
            value = self._value(kind)
            if key.startswith(_KEYS):
                found[key] = value
        return found

    def _value(self, kind: int) -> Any:
        if kind == _STRING:
            return self._string()
        if kind != _ARRAY:
            return self._take(self._format(kind))[0]
        inner, count = self._take("IQ")
        if inner == _STRING:
            return [self._string() for _ in range(count)]
        if count > len(self._data):
            raise ValueError("an array of it is cut off")
        return list(self._take(f"{count}{self._format(inner)}"))

    def _format(self, kind: int) -> str:
        if kind not in _SCALARS:
            raise ValueError(f"it holds a value of the unknown type {kind}")
        return _SCALARS[kind]

    def _string(self) -> str:
        (size,) = self._take("Q")
        begin = self._at
        self._at += size
        if self._at > len(self._data):
            raise ValueError("a string of it is cut off")
        return self._data[begin : self._at].decode()

    def _take(self, layout: str) -> tuple[Any, ...]:
        found = struct.unpack_from(f"<{layout}", self._data, self._at)
        self._at += struct.calcsize(f"<{layout}")
        return found
