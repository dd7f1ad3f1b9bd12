"""Vocabularies as bytes: what every token spells, and how bytes become tokens."""

import hashlib
import json
import re
import struct
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from enum import IntEnum
from functools import cached_property

from tokenizer_maps.errors import EncodingError


class Kind(IntEnum):
    """What stands at an id: a byte token, an added token spelt literally, a special, nothing."""

    BYTE = 0
    ADDED = 1
    SPECIAL = 2
    NONE = 3


@dataclass(frozen=True, eq=False)
class Vocabulary:
    """One tokenizer, seen as a table of byte strings and a byte-exact encoder; thread safe.

    ``tokens`` and ``kinds`` run over all ids; specials and gaps spell ``b""``. ``start`` holds the
    ids the tokenizer itself puts in front of a text, ``end`` those that end one. Equal
    ``fingerprint``: equal ids, bytes, pre-tokenizer, normaliser and merges.
    """

    tokens: tuple[bytes, ...] = field(repr=False)
    kinds: tuple[Kind, ...] = field(repr=False)
    specials: Mapping[str, int] = field(repr=False)
    start: tuple[int, ...]
    end: frozenset[int]
    fingerprint: str
    chat_template: str | None = field(repr=False)
    encoder: Callable[[bytes], Sequence[int]] = field(repr=False)

    def encode(self, data: bytes) -> tuple[int, ...]:
        """The canonical tokens of ``data``, which spell it exactly: any bytes, no special token.

        Neither normaliser nor dummy prefix is applied. Bytes that no token spells are left out, as
        the tokenizer itself does (SmolLM2 lacks 0x04, 0xF1 and 19 more).
        """
        try:
            return tuple(self.encoder(data))
        except (Exception, KeyboardInterrupt, SystemExit):
            raise
        except BaseException:  # noqa: BLE001 - a panic in Rust, which would end whoever runs it
            raise EncodingError("the tokenizer breaks down on this text") from None

    def decode(self, ids: Iterable[int]) -> bytes:
        """The bytes that ``ids`` spell."""
        return b"".join([self.tokens[i] for i in ids])

    def id_of(self, token: bytes) -> int | None:
        """The lowest id that spells ``token``, None where there is none."""
        return self._ids.get(token)

    def spells(self, token_id: int) -> bool:
        """Whether ``token_id`` is a token of text: neither special nor a gap."""
        return self.kinds[token_id] <= Kind.ADDED

    @cached_property
    def _ids(self) -> dict[bytes, int]:
        return {self.tokens[i]: i for i in reversed(range(len(self.tokens))) if self.spells(i)}


def utf8_runs(data: bytes) -> Iterator[tuple[str, bytes]]:
    """Cut ``data`` into pairs of valid text and the invalid bytes that follow it, either empty."""
    for run in _RUN.finditer(data.decode("utf-8", "surrogateescape")):
        if run[0]:
            yield run[1], run[2].encode("utf-8", "surrogateescape")


_RUN = re.compile("([^\udc80-\udcff]*)([\udc80-\udcff]*)")  # surrogateescape marks invalid bytes


def fingerprint(tokens: Sequence[bytes], kinds: Sequence[Kind], rules: object) -> str:
    """The sha256 (hex) of a vocabulary: its dump by id, then its ``rules`` (plain JSON values)."""
    dump = b"".join(
        struct.pack("<IBI", i, kind, len(token)) + token
        for i, (token, kind) in enumerate(zip(tokens, kinds, strict=True))
    )
    return hashlib.sha256(dump + json.dumps(rules, sort_keys=True).encode()).hexdigest()
