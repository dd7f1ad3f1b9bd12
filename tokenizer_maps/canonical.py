"""Canonical tokens of a growing text: only its tail is encoded anew."""

import re
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache

from tokenizer_maps.vocabulary import Vocabulary

Ids = tuple[int, ...]

LOOKBACK = 64  # bytes before a change that are read again, at least
SHORT = 512  # bytes of a text whose tokens are worth remembering by the thousand
_KEPT = 32  # texts whose tokens are remembered
# What splits white space before it: digits, a letter that no token joins to a space, a stop.
PROBES = tuple(probe.encode() for probe in ("0", "٣", "漢", "."))
_RUNS = re.compile(r"\w+|\s+|[^\w\s]+")
_APART = 6  # runs of like characters that hold two whole pretokens, whatever the pre-tokenizer


@dataclass(frozen=True, slots=True)
class Known:
    """A text and its canonical tokens; not ``whole`` where they leave some of its bytes out."""

    text: bytes
    ids: Ids
    whole: bool


@dataclass(frozen=True, slots=True)
class Path:
    """Canonical tokens: the first ``kept`` of a known text's, then ``tail``."""

    kept: int
    tail: Ids


@dataclass(frozen=True, eq=False)
class Encoder:
    """Encodes as ``vocabulary.encode`` does, in a time that hardly grows with the text's length.

    The tokens of a text that begins like a known one are sought from one of its token boundaries
    on, at least LOOKBACK bytes and two pretokens before the first new byte. They are taken if they
    begin with the tokens known there; else the search starts further back, at last from the
    beginning. For one thread.
    """

    vocabulary: Vocabulary
    _known: dict[bytes, Known] = field(default_factory=dict)  # the latest last

    def encode(self, text: bytes) -> Known:
        """The canonical tokens of ``text``."""
        known = self._known.pop(text, None) or self._grown(text)
        self._known[text] = known
        if len(self._known) > _KEPT:
            del self._known[next(iter(self._known))]
        return known

    def path(self, text: bytes, known: Known, common: int) -> Path:
        """The canonical tokens of ``text``, which shares ``common`` bytes with a known one."""
        tokens, ids = self.vocabulary.tokens, known.ids
        at, position, back = len(ids), len(known.text), LOOKBACK
        while known.whole:
            while at and position > common - back:
                at -= 1
                position -= len(tokens[ids[at]])
            if not at:
                break
            if _apart(text[position:common]):
                tail = self.piece(text[position:])
                if self._agree(ids[at:], tail, common - LOOKBACK // 2 - position):
                    return Path(at, tail)
            back *= 2
        return Path(0, self.vocabulary.encode(text))

    def spellings(self, known: Known, common: int) -> list[Path]:
        """The tokens of the first ``common`` bytes of a known text, with other texts behind them.

        The canonical ones first. Before some characters white space is split where it is one token
        at the end of a text.
        """
        text = known.text[:common]
        paths = [self.path(text, known, common)]
        if not text[-8:].decode("utf-8", "ignore")[-2:].ljust(2, ".").isspace():
            return paths
        for probe in PROBES:
            path = self._until(self.path(text + probe, known, common), known, common)
            if path is not None and not any(alike(known.ids, path, other) for other in paths):
                paths.append(path)
        return paths

    def _until(self, path: Path, known: Known, common: int) -> Path | None:
        """A path's tokens up to byte ``common``; None where none ends there."""
        missing = self._length(known.ids[path.kept :]) - (len(known.text) - common)
        for n, token in enumerate((*path.tail, -1)):
            if missing <= 0:
                return Path(path.kept, path.tail[:n]) if not missing and known.whole else None
            missing -= len(self.vocabulary.tokens[token])
        return None

    def ends(self, known: Known, most: int) -> dict[int, int]:
        """Where tokens of a known text end: bytes from its end, up to ``most`` → their number."""
        found: dict[int, int] = {}
        at, length = len(known.ids), 0
        while known.whole and at and length <= most:
            found[length] = at
            at -= 1
            length += len(self.vocabulary.tokens[known.ids[at]])
        return found

    def piece(self, text: bytes) -> Ids:
        """``vocabulary.encode``; of short texts the answers are remembered."""
        return self.vocabulary.encode(text) if len(text) > SHORT else self._pieces(text)

    @cached_property
    def _pieces(self) -> Callable[[bytes], Ids]:
        return lru_cache(1 << 14)(self.vocabulary.encode)

    def _grown(self, text: bytes) -> Known:
        begins = [known for known in self._known.values() if text.startswith(known.text)]
        if not begins:
            ids = self.vocabulary.encode(text)
            return Known(text, ids, self._length(ids) == len(text))
        known = max(begins, key=lambda one: len(one.text))
        path = self.path(text, known, len(known.text))
        before = known.ids[: path.kept]
        whole = self._length(known.ids[path.kept :]) + len(text) - len(known.text)
        return Known(text, before + path.tail, known.whole and self._length(path.tail) == whole)

    def _length(self, ids: Ids) -> int:
        return sum(len(self.vocabulary.tokens[i]) for i in ids)

    def _agree(self, old: Ids, new: Ids, settled: int) -> bool:
        """Whether the first tokens are the same, and all others in the first ``settled`` bytes."""
        length = 0
        for n, (left, right) in enumerate(zip(old, new, strict=False)):
            length += len(self.vocabulary.tokens[left])
            if left != right:
                return n > 0 and length > settled
        return bool(new)


def alike(ids: Ids, left: Path, right: Path) -> bool:
    """Whether two paths are the same tokens; ``ids`` are the known text's."""
    kept = min(left.kept, right.kept)
    return ids[kept : left.kept] + left.tail == ids[kept : right.kept] + right.tail


def anchor(vocabulary: Vocabulary, ids: Sequence[int], least: int) -> int:
    """Bytes between the end of what ``ids`` spell and a boundary to read it again from.

    At least ``least``, and so many that the first token found is the one that is there; else all.
    """
    length, at = 0, len(ids)
    while at:
        while at and length < least:
            at -= 1
            length += len(vocabulary.tokens[ids[at]])
        if at and vocabulary.encode(vocabulary.decode(ids[at:]))[:1] == (ids[at],):
            break
        least = 2 * length
    return length


def _apart(between: bytes) -> bool:
    return len(_RUNS.findall(between.decode("utf-8", "ignore"))) >= _APART
