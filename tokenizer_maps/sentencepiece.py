"""sentencepiece models as vocabularies: the file, its two algorithms, bytes in place of ▁."""

import hashlib
import math
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Sequence, Set
from dataclasses import dataclass, field
from enum import IntEnum
from functools import lru_cache
from heapq import heappop, heappush
from itertools import chain
from pathlib import Path
from typing import Any, NamedTuple

from tokenizer_maps.beside import chat_template, end_ids, named, read_json
from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.vocabulary import Kind, Vocabulary, fingerprint, utf8_runs

SPACE = "▁"  # how these models write a space, U+2581
_WORDS, _WORD = 1 << 15, 64  # so many words, so long, are kept: most of a text has been seen before


class PieceType(IntEnum):
    """What a piece is; GGUF files use the same numbers."""

    NORMAL = 1
    UNKNOWN = 2
    CONTROL = 3
    USER_DEFINED = 4
    UNUSED = 5
    BYTE = 6


_TEXTS = (PieceType.NORMAL, PieceType.USER_DEFINED, PieceType.UNUSED)


class Piece(NamedTuple):
    """One entry of the model, at its id."""

    text: str
    score: float
    type: PieceType


@dataclass(frozen=True)
class Model:
    """What a sentencepiece file says, as far as tokens depend on it."""

    pieces: tuple[Piece, ...] = field(repr=False)
    unigram: bool
    start: int
    end: int
    normaliser: str


def read_sentencepiece(path: Path) -> Vocabulary:
    """The model file ``path``, or tokenizer.model in that directory, with the files beside it.

    Raises VocabularyError where it is missing, unreadable or neither BPE nor unigram. The text
    starts with the model's <s>, unless a tokenizer_config.json says otherwise.
    """
    file = path / "tokenizer.model" if path.is_dir() else path
    try:
        model = parse(file.read_bytes())
    except OSError as error:
        raise VocabularyError(f"{file} cannot be read: {error}") from error
    except VocabularyError as error:
        raise VocabularyError(f"{file}: {error}") from error
    config = read_json(file.with_name("tokenizer_config.json"))
    ids = {piece.text: i for i, piece in enumerate(model.pieces)}
    start = (model.start,) if config.get("add_bos_token", True) and model.start >= 0 else ()
    own = named(config.get("eos_token"), ids) or ([model.end] if model.end >= 0 else [])
    return from_pieces(
        model.pieces,
        unigram=model.unigram,
        start=start,
        end=end_ids(file.parent, own),
        chat_template=chat_template(file.parent, config),
        normaliser=model.normaliser,
    )


def from_pieces(
    pieces: Sequence[Piece],
    *,
    unigram: bool,
    start: tuple[int, ...],
    end: frozenset[int],
    chat_template: str | None,
    normaliser: str | None,
) -> Vocabulary:
    """Pieces as a vocabulary; <0x0A> spells one byte, ▁ a space. Raises VocabularyError."""
    rows = [_row(piece) for piece in pieces]
    tokens, kinds = tuple(token for token, _ in rows), tuple(kind for _, kind in rows)
    rules = {
        "sentencepiece": "unigram" if unigram else "bpe",
        "scores": [piece.score for piece in pieces],
        "types": [int(piece.type) for piece in pieces],
        "normaliser": normaliser,
    }
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        specials={p.text: i for i, p in enumerate(pieces) if kinds[i] == Kind.SPECIAL},
        start=start,
        end=end,
        fingerprint=fingerprint(tokens, kinds, rules),
        chat_template=chat_template,
        encoder=encoder_of(pieces, unigram),
    )


def bytewise(
    encode: Callable[[str], Sequence[int]], spelt: Sequence[Sequence[int]]
) -> Callable[[bytes], list[int]]:
    """Encode bytes with an encoder of text that writes ▁ for a space.

    ``spelt[b]`` spells byte b, or nothing. A ▁ of the text itself would come back as a space, so
    it is spelt by its bytes, as are invalid ones.
    """
    literal = [i for byte in SPACE.encode() for i in spelt[byte]]

    def encoded(data: bytes) -> list[int]:
        ids: list[int] = []
        for text, bad in utf8_runs(data):
            for n, part in enumerate(text.split(SPACE)):
                ids += literal if n else ()
                ids += encode(part.replace(" ", SPACE)) if part else ()
            ids += [i for byte in bad for i in spelt[byte]]
        return ids

    return encoded


def _row(piece: Piece) -> tuple[bytes, Kind]:
    if piece.type is PieceType.BYTE:
        found = re.fullmatch("<0x([0-9A-F]{2})>", piece.text)
        if found is None:
            raise VocabularyError(f"the piece {piece.text!r} says it is a byte, and is none")
        return bytes.fromhex(found[1]), Kind.BYTE
    if piece.type in (PieceType.CONTROL, PieceType.UNKNOWN):
        return b"", Kind.SPECIAL
    if piece.type is PieceType.UNUSED or not piece.text:
        return b"", Kind.NONE
    return piece.text.replace(SPACE, " ").encode(), Kind.BYTE


def encoder_of(pieces: Sequence[Piece], unigram: bool) -> Callable[[bytes], list[int]]:
    """A byte-exact encoder: canonical for text, and <0xNN> for every byte no piece spells."""
    texts, spelt = _tables(pieces)
    slow = _viterbi(texts) if unigram else _merge(texts)
    quick = lru_cache(_WORDS)(slow)
    together = {piece[n : n + 2] for piece in texts for n in range(len(piece) - 1)}
    defined = [t for t, (_, piece) in texts.items() if piece.type is PieceType.USER_DEFINED]
    whole = "|".join(map(re.escape, sorted(defined, key=len, reverse=True)))
    find = re.compile(f"({whole})").split if whole else lambda text: [text]

    def ids_of(piece: str) -> Iterable[int]:
        entry = texts.get(piece)
        if entry is not None and entry[1].type is not PieceType.UNUSED:
            return entry[:1]
        return chain.from_iterable(spelt[byte] for byte in piece.replace(SPACE, " ").encode())

    def encode(text: str) -> list[int]:
        ids: list[int] = []
        for n, part in enumerate(find(text)):
            # A symbol the user defined, every second part, is never part of anything longer.
            if n % 2:
                ids += ids_of(part)
                continue
            for chunk in _chunks(part, together):
                for piece in (quick if len(chunk) <= _WORD else slow)(chunk):
                    ids += ids_of(piece)
        return ids

    return bytewise(encode, spelt)


def _tables(pieces: Sequence[Piece]) -> tuple["Table", list[list[int]]]:
    """Pieces by text, the lowest id first, and the ids that spell each byte."""
    texts: Table = {}
    spelt: list[list[int]] = [[] for _ in range(256)]
    for i, piece in enumerate(pieces):
        if piece.type is PieceType.BYTE:
            spelt[_row(piece)[0][0]] = [i]
        elif piece.type in _TEXTS and piece.text:
            texts.setdefault(piece.text, (i, piece))
    return texts, spelt


def _chunks(text: str, together: Set[str]) -> Iterator[str]:
    """Cut between characters that are never together in a piece: no token reaches across."""
    begin = 0
    for at in range(1, len(text)):
        if text[at - 1 : at + 1] not in together:
            yield text[begin:at]
            begin = at
    if text:
        yield text[begin:]


Table = dict[str, tuple[int, Piece]]


def _merge(texts: Table) -> Callable[[str], tuple[str, ...]]:
    """BPE: again and again the best-scored neighbours become one, the leftmost first."""
    return lambda text: _Merging(texts, text).result()


class _Merging:
    """One text on its way through BPE: its parts as a linked list, the possible merges a heap."""

    def __init__(self, texts: Table, text: str) -> None:
        self._texts = texts
        self._parts = list(text)
        self._after = list(range(1, len(text) + 1))
        self._before = list(range(-1, len(text) - 1))
        self._queue: list[tuple[float, int, int, str]] = []
        self._made: dict[str, tuple[str, str]] = {}  # how an unused piece came about
        for n in range(len(text) - 1):
            self._offer(n, n + 1)

    def result(self) -> tuple[str, ...]:
        while self._queue:
            _, left, right, joined = heappop(self._queue)
            one, other = self._parts[left], self._parts[right]
            if one and other and one + other == joined:  # else one has been merged meanwhile
                self._join(left, right)
        return tuple(_used(filter(None, self._parts), self._made))

    def _offer(self, left: int, right: int) -> None:
        if left >= 0 and right < len(self._parts):
            found = self._texts.get(self._parts[left] + self._parts[right])
            if found:
                heappush(self._queue, (-found[1].score, left, right, found[1].text))

    def _join(self, left: int, right: int) -> None:
        one, other = self._parts[left], self._parts[right]
        if self._texts[one + other][1].type is PieceType.UNUSED:
            self._made[one + other] = one, other
        self._parts[left], self._parts[right] = one + other, ""
        after = self._after[left] = self._after[right]
        if after < len(self._parts):
            self._before[after] = left
        self._offer(self._before[left], left)
        self._offer(left, after)


def _used(parts: Iterable[str], made: dict[str, tuple[str, str]]) -> Iterator[str]:
    """The parts, with every unused piece taken apart again."""
    for part in parts:
        if part in made:
            yield from _used(made[part], made)
        else:
            yield part


def _viterbi(texts: Table) -> Callable[[str], tuple[str, ...]]:
    """Unigram: the pieces with the highest sum of scores; the first found where two are equal.

    sentencepiece adds in 32 bits over the whole text, so that rounding settles what is equal here.
    """
    used = {t: piece for t, (_, piece) in texts.items() if piece.type is not PieceType.UNUSED}
    normal = [piece.score for piece in used.values() if piece.type is PieceType.NORMAL]
    highest, lowest = max(normal, default=0.0), min(normal, default=0.0)
    unknown = lowest - 10  # what sentencepiece takes for a character without a piece
    longest = max(map(len, used), default=0)

    def score(piece: Piece) -> float:
        # Symbols the user defined win over any path of normal pieces.
        defined = piece.type is PieceType.USER_DEFINED
        return len(piece.text) * highest - 0.1 if defined else piece.score

    def cut(text: str) -> tuple[str, ...]:
        best = [0.0, *[-math.inf] * len(text)]
        begin = [0] * (len(text) + 1)
        for at in range(len(text)):
            for to in range(at + 1, min(at + longest, len(text)) + 1):
                piece = used.get(text[at:to])
                if piece is not None and best[at] + score(piece) > best[to]:
                    best[to], begin[to] = best[at] + score(piece), at
            if text[at] not in used and best[at] + unknown > best[at + 1]:
                best[at + 1], begin[at + 1] = best[at] + unknown, at
        parts, to = [], len(text)
        while to:
            parts.append(text[begin[to] : to])
            to = begin[to]
        return tuple(reversed(parts))

    return cut


# The file is a protobuf message; field numbers from sentencepiece_model.proto.
_PIECES, _TRAINER, _NORMALISER = 1, 2, 3
_TEXT, _SCORE, _TYPE = 1, 2, 3
_MODEL_TYPE, _START, _END = 3, 41, 42
_ALGORITHMS = {1: "unigram", 2: "bpe", 3: "word", 4: "char"}


def parse(data: bytes) -> Model:
    """A model file's content. Raises VocabularyError where it is none that can be used."""
    try:
        fields = list(_fields(data))
        pieces = tuple(_piece(value) for number, value in fields if number == _PIECES)
        trainer = dict(_fields(b"".join(value for number, value in fields if number == _TRAINER)))
        normaliser = b"".join(value for number, value in fields if number == _NORMALISER)
    except (AttributeError, IndexError, TypeError, ValueError, struct.error) as error:
        raise VocabularyError(f"it is no sentencepiece model: {error!r}") from error
    algorithm = _ALGORITHMS.get(trainer.get(_MODEL_TYPE, 1))
    if not pieces or algorithm not in ("bpe", "unigram"):
        raise VocabularyError(
            f"a {algorithm} model of {len(pieces)} pieces is not supported, only BPE and unigram"
        )
    start, end = (_signed(trainer.get(key, key - 40)) for key in (_START, _END))
    if max(start, end) >= len(pieces):
        raise VocabularyError("its <s> or </s> lies beyond its pieces")
    return Model(pieces, algorithm == "unigram", start, end, hashlib.sha256(normaliser).hexdigest())


def _piece(data: Any) -> Piece:
    found = dict(_fields(data))
    (score,) = struct.unpack("<f", found.get(_SCORE, bytes(4)))
    return Piece(found.get(_TEXT, b"").decode(), score, PieceType(found.get(_TYPE, 1)))


def _signed(value: int) -> int:
    return value - (1 << 64) if value >> 63 else value


def _fields(data: bytes) -> Iterator[tuple[int, Any]]:
    """The fields of a protobuf message: an int, or the bytes of anything else."""
    at = 0
    while at < len(data):
        tag, at = _varint(data, at)
        number, wire = tag >> 3, tag & 7
        if wire == 0:
            value, at = _varint(data, at)
            yield number, value
            continue
        if wire == 2:
            size, at = _varint(data, at)
        else:
            size = {1: 8, 5: 4}.get(wire, -1)
        if size < 0 or at + size > len(data):
            raise ValueError("a field of it is cut off or of an unknown type")
        yield number, data[at : at + size]
        at += size


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while True:
        byte = data[at]
        at += 1
        value |= (byte & 0x7F) << shift
        shift += 7
        if byte < 0x80:
            return value, at
        if shift > 63:
            raise ValueError("a number of it is too long")
