"""Tokens of a vocabulary that nobody knows: they are known by their bytes."""

import hashlib
import re
from collections.abc import Mapping
from typing import Any

from adapter.candidates import END, Candidate, Position
from adapter.upstream.answers import nats
from adapter.upstream.tokens import REPLACED, given, is_id, spelling

_ENDS = frozenset(
    (
        "</s>",
        "<eos>",
        "<end_of_turn>",
        "<|end|>",
        "<|endoftext|>",
        "<|end_of_text|>",
        "<|eot_id|>",
        "<|eom_id|>",
        "<|im_end|>",
        "<|return|>",
        "<|END_OF_TURN_TOKEN|>",
        "<｜end▁of▁sentence｜>",
    )
)
"""How the ends of texts are called where no vocabulary tells."""

_MARKED = re.compile(r"<[|｜][^<>|｜]*[|｜]>|<(?:s|pad|unk|bos|start_of_turn)>|\[/?INST\]")
"""What other special tokens look like: none of them can be sent."""


class Spellings(dict[int, bytes]):
    """The bytes of the tokens that were met, by id, b"" for END."""

    def meet(self, position: Position) -> None:
        """Take up a position's tokens."""
        tokens = position.candidates
        if position.drafted is not None:
            tokens = (*tokens, position.drafted)
        self.update((c.id, c.token) for c in tokens if c.id is not None)


class SpeltNames:
    """Candidates by their bytes, with ids made of these; None for what is not one token's alone.

    `size`, the number of tokens, is not known.
    """

    size: int | None = None

    def of_id(self, token: int, logprob: float) -> Candidate | None:
        """Nothing: the upstream's own ids mean nothing here."""
        return None

    def of_key(self, key: str, logprob: float) -> Candidate | None:
        """The token behind a key; "" and U+FFFD are printed of many, and no special is text."""
        if key in _ENDS:
            return Candidate(b"", logprob, spelt_id(b""), END)
        if REPLACED in key or is_id(key) or _MARKED.fullmatch(key):
            return None
        return _of_bytes(spelling(key), logprob)

    def of_entry(self, entry: Mapping[str, Any], pending: bytes = b"") -> Candidate | None:
        """The token behind an entry of chat's `top_logprobs`, by its `bytes` where it has some.

        ``pending`` as for `TokenNames.of_entry`.
        """
        key, logprob = entry.get("token"), nats(entry.get("logprob"))
        spelt = given(entry.get("bytes"))
        printed = spelt.decode("utf-8", "replace") if spelt else key
        if not isinstance(printed, str):
            return None
        if not spelt or printed in _ENDS or _MARKED.fullmatch(printed):
            return self.of_key(printed, logprob)
        if REPLACED.encode() in spelt:  # as printed: the bytes of no token
            return None
        return _of_bytes(spelt.removeprefix(pending), logprob)

    def check(self, candidate: Candidate, spelt: bytes) -> None:
        """There is no vocabulary to compare with."""


def spelt_id(token: bytes) -> int:
    """The id of a token known by its bytes: 62 bits of their hash, alike in every process."""
    return int.from_bytes(hashlib.blake2b(token, digest_size=8).digest()) >> 2


def _of_bytes(spelt: bytes, logprob: float) -> Candidate | None:
    return Candidate(spelt, logprob, spelt_id(spelt)) if spelt else None
