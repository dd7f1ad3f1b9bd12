"""How one vocabulary's tokens lie in another's, by bytes; kept in a file."""

import hashlib
import json
import logging
import struct
from bisect import bisect_left, bisect_right
from dataclasses import asdict, dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from typing import Any
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.coverage import Coverage, compare, torn
from tokenizer_maps.errors import MapError
from tokenizer_maps.vocabulary import Kind, Vocabulary

log = logging.getLogger(__name__)

Ids = NDArray[np.int32]

MAGIC = b"TKMAP\r\n\0"
VERSION = 2
HEADER = struct.Struct("<8s2I")  # magic, version, length of the JSON object that comes next
DIGEST = 32  # sha256 of everything before it, at the end of the file


@dataclass(frozen=True, eq=False)
class TokenMap:
    """The pair's tokens by rank, and which of them begin each upstream token.

    ``order``: the pair's text tokens sorted by (bytes, id); a rank indexes it.
    ``frt_ptr``, ``frt_ids``: upstream id c → frt_ids[frt_ptr[c]:frt_ptr[c + 1]], in rank order:
    the pair tokens whose own upstream encoding starts with c (first remote token, FRT).
    ``first``: upstream id → first canonical pair token of its bytes, −1 where there is none.
    """

    upstream: Vocabulary
    pair: Vocabulary
    order: Ids
    frt_ptr: Ids
    frt_ids: Ids
    first: Ids

    @classmethod
    def build(cls, upstream: Vocabulary, pair: Vocabulary) -> "TokenMap":
        """Compare the two vocabularies, in seconds."""
        tokens = pair.tokens
        texts = [i for i, token in enumerate(tokens) if token]
        order = np.array(sorted(texts, key=lambda i: (tokens[i], i)), np.int32)
        begins = np.array([_first(upstream, tokens[i]) for i in order], np.int32)
        by = np.argsort(begins, kind="stable")
        counts = np.bincount(begins + 1, minlength=len(upstream.tokens) + 1)
        # Column 0 counts the tokens that begin with no upstream token: the first row starts there.
        ptr = np.cumsum(counts) - counts[0]
        ids = order[by[counts[0] :]]
        first = np.array([_first(pair, token) for token in upstream.tokens], np.int32)
        return cls(upstream, pair, order, ptr.astype(np.int32), ids, first)

    def span(self, prefix: bytes) -> tuple[int, int]:
        """The ranks [lo, hi) of the pair tokens that start with ``prefix``."""
        return self._from(bisect_left(self._sorted, prefix), prefix)

    def beyond(self, prefix: bytes) -> tuple[int, int]:
        """The ranks [lo, hi) of the pair tokens that start with ``prefix`` and are longer."""
        return self._from(bisect_right(self._sorted, prefix), prefix)

    @cached_property
    def longest(self) -> int:
        """The length in bytes of the longest pair token."""
        return max(map(len, self._sorted), default=0)

    @cached_property
    def _sorted(self) -> list[bytes]:
        return [self.pair.tokens[i] for i in self.order.tolist()]

    def _from(self, low: int, prefix: bytes) -> tuple[int, int]:
        """The ranks from ``low`` on that start with ``prefix``."""
        if low == len(self._sorted) or not self._sorted[low].startswith(prefix):
            return low, low
        stem = prefix.rstrip(b"\xff")  # nothing sorts after 0xFF: the next string is one byte up
        if not stem:
            return low, len(self._sorted)
        return low, bisect_left(self._sorted, stem[:-1] + bytes([stem[-1] + 1]), low)

    @cached_property
    def coverage(self) -> Coverage:
        """How much of the upstream's vocabulary the pair's covers; takes half a second."""
        return compare(self.upstream, self.pair, self._sorted)

    @cached_property
    def torn(self) -> dict[str, tuple[int, int]]:
        """By script: (upstream tokens the pair sees as a piece of a character, all); if most."""
        ids = np.flatnonzero((np.diff(self.frt_ptr) == 0) & (self.first >= 0))
        coarse = zip(ids.tolist(), self.first[ids].tolist(), strict=True)
        return torn(self.upstream, self.pair, dict(coarse))

    @cached_property
    def nested(self) -> bool:
        """Whether every upstream token is one pair token, byte for byte."""
        tokens, kinds = self.upstream.tokens, self.upstream.kinds
        own = [token for token, kind in zip(tokens, kinds, strict=True) if kind is Kind.BYTE]
        return all(self.pair.id_of(token) is not None for token in own)

    @property
    def identical(self) -> bool:
        """Whether the two vocabularies are one, with its rules."""
        return self.upstream.fingerprint == self.pair.fingerprint

    def save(self, path: Path) -> None:
        """Write the file in one step, the same bytes for the same map; MapError if it cannot."""
        arrays = self.order, self.frt_ptr, self.frt_ids, self.first
        facts = {
            "upstream": self.upstream.fingerprint,
            "pair": self.pair.fingerprint,
            "order": len(self.order),
            "first": len(self.first),
            "frt_ids": len(self.frt_ids),
            "coverage": asdict(self.coverage),
        }
        text = json.dumps(facts, sort_keys=True, separators=(",", ":")).encode()
        text += b" " * (-len(text) % 8)  # the arrays begin at a multiple of their size
        body = HEADER.pack(MAGIC, VERSION, len(text)) + text
        body += b"".join([array.astype("<i4").tobytes() for array in arrays])
        draft = path.with_name(f"{path.name}.{uuid4().hex}.tmp")
        try:
            draft.write_bytes(body + hashlib.sha256(body).digest())
            draft.replace(path)
        except OSError as error:
            draft.unlink(missing_ok=True)
            raise MapError(f"{path} cannot be written ({error}): name another directory") from error

    @classmethod
    def load(cls, path: Path, upstream: Vocabulary, pair: Vocabulary) -> "TokenMap":
        """Map the file into memory; MapError unless it is whole and made for these vocabularies."""
        facts, data = _opened(path)
        if (facts["upstream"], facts["pair"]) != (upstream.fingerprint, pair.fingerprint):
            raise MapError(f"{path} was made for other vocabularies: delete it, it is built anew")
        cuts = np.cumsum([facts["order"], facts["first"] + 1, facts["frt_ids"], facts["first"]])
        if 4 * cuts[-1] != len(data):
            raise MapError(f"{path} has the wrong length: delete it, it is built anew")
        arrays = np.split(np.frombuffer(data, "<i4"), cuts[:-1])
        made = cls(upstream, pair, *arrays)
        if not _is_sound(made):
            raise MapError(f"{path} is no map of its vocabularies: delete it, it is built anew")
        return made


def read_facts(path: Path) -> dict[str, Any]:
    """What a map file says of itself: fingerprints, sizes, coverage.

    Raises MapError where the file is damaged or of another version.
    """
    return _opened(path)[0]


def file_name(upstream: Vocabulary, pair: Vocabulary) -> str:
    """The name ``open_map`` gives the file of these vocabularies."""
    return f"{upstream.fingerprint[:16]}-{pair.fingerprint[:16]}.tkmap"


def open_map(directory: Path, upstream: Vocabulary, pair: Vocabulary) -> TokenMap:
    """The map kept in ``directory``, built and saved there on first use or where it is damaged.

    Raises MapError where the directory cannot be written.
    """
    path = directory / file_name(upstream, pair)
    if path.exists():
        try:
            return TokenMap.load(path, upstream, pair)
        except MapError as error:
            log.warning("building a token map anew: %s", error)
    try:
        directory.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise MapError(f"{directory} cannot be made ({error}): name another directory") from error
    built = TokenMap.build(upstream, pair)
    built.save(path)
    return built


def _first(vocabulary: Vocabulary, token: bytes) -> int:
    """The first id of the encoding of ``token``; −1 where it has none or skips bytes."""
    ids = vocabulary.encode(token)
    return ids[0] if ids and token.startswith(vocabulary.tokens[ids[0]]) else -1


def _is_sound(made: TokenMap) -> bool:
    """Whether every entry points at something: a map built wrongly must not be worse than none."""
    ptr, ids = made.frt_ptr, made.frt_ids
    if len(made.first) != len(made.upstream.tokens) or ptr[0] != 0 or ptr[-1] != len(ids):
        return False
    found = [(0, made.order), (0, ids), (-1, made.first)]
    size = len(made.pair.tokens)
    inside = all(low <= ids.min() <= ids.max() < size for low, ids in found if len(ids))
    return inside and not (np.diff(ptr) < 0).any()


def _opened(path: Path) -> tuple[dict[str, Any], memoryview]:
    """What a map file says of itself, and its arrays; magic, version and checksum are right."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    except (OSError, ValueError) as error:
        raise MapError(f"{path} cannot be read: {error}") from error
    if len(data) < HEADER.size + DIGEST or data[: len(MAGIC)] != MAGIC:
        raise MapError(f"{path} is no token map: delete it, it is built anew")
    _, version, size = HEADER.unpack_from(data)
    if version != VERSION:
        raise MapError(f"{path} is of another version: delete it, it is built anew")
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise MapError(f"{path} is damaged: delete it, it is built anew")
    begin = HEADER.size + size
    return _facts(bytes(data[HEADER.size : begin]), path), data[begin:-DIGEST]


def _facts(text: bytes, path: Path) -> dict[str, Any]:
    try:
        facts = dict(json.loads(text))
        sizes = [facts[name] for name in ("order", "first", "frt_ids")]
        known = {"upstream", "pair", "coverage"} <= facts.keys()
    except (ValueError, TypeError, KeyError) as error:
        raise MapError(f"{path} is damaged: delete it, it is built anew") from error
    if not known or not all(type(size) is int and 0 <= size < 1 << 31 for size in sizes):
        raise MapError(f"{path} is damaged: delete it, it is built anew")
    return facts
