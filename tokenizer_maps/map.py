"""How one vocabulary's tokens lie in another's, by bytes; kept in a file."""

import hashlib
import logging
import struct
from bisect import bisect_left, bisect_right
from dataclasses import dataclass
from functools import cached_property
from mmap import ACCESS_READ, mmap
from pathlib import Path
from uuid import uuid4

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.errors import MapError
from tokenizer_maps.vocabulary import Vocabulary

log = logging.getLogger(__name__)

Ids = NDArray[np.int32]

MAGIC = b"TKMAP\r\n\0"
VERSION = 1
# magic, version, lengths of order, first and frt_ids, fingerprints of the upstream and the pair
HEADER = struct.Struct("<8s4I32s32s")
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

    def save(self, path: Path) -> None:
        """Write the file in one step, the same bytes for the same map; MapError if it cannot."""
        arrays = self.order, self.frt_ptr, self.frt_ids, self.first
        sizes = len(self.order), len(self.first), len(self.frt_ids)
        body = HEADER.pack(MAGIC, VERSION, *sizes, *_fingerprints(self.upstream, self.pair))
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
        data = _mapped(path)
        _, _, ranks, width, begun, *fingerprints = HEADER.unpack_from(data)
        if fingerprints != _fingerprints(upstream, pair):
            raise MapError(f"{path} was made for other vocabularies: delete it, it is built anew")
        cuts = np.cumsum([ranks, width + 1, begun, width])
        arrays = np.split(np.frombuffer(data[HEADER.size : -DIGEST], "<i4"), cuts)
        if cuts[-1] != sum(map(len, arrays)) or len(arrays[-1]):
            raise MapError(f"{path} has the wrong length: delete it, it is built anew")
        return cls(upstream, pair, *arrays[:-1])


def open_map(directory: Path, upstream: Vocabulary, pair: Vocabulary) -> TokenMap:
    """The map kept in ``directory``, built and saved there on first use or where it is damaged.

    Raises MapError where the directory cannot be written.
    """
    path = directory / f"{upstream.fingerprint[:16]}-{pair.fingerprint[:16]}.tkmap"
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


def _fingerprints(upstream: Vocabulary, pair: Vocabulary) -> list[bytes]:
    return [bytes.fromhex(upstream.fingerprint), bytes.fromhex(pair.fingerprint)]


def _mapped(path: Path) -> memoryview:
    """The bytes of a map file whose magic, version and checksum are right."""
    try:
        with path.open("rb") as file:
            data = memoryview(mmap(file.fileno(), 0, access=ACCESS_READ))
    except (OSError, ValueError) as error:
        raise MapError(f"{path} cannot be read: {error}") from error
    if len(data) < HEADER.size + DIGEST or data[: len(MAGIC)] != MAGIC:
        raise MapError(f"{path} is no token map: delete it, it is built anew")
    if HEADER.unpack_from(data)[1] != VERSION:
        raise MapError(f"{path} is of another version: delete it, it is built anew")
    if hashlib.sha256(data[:-DIGEST]).digest() != data[-DIGEST:]:
        raise MapError(f"{path} is damaged: delete it, it is built anew")
    return data
