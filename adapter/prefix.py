"""Prefix: everything the upstream's next token depends on."""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field

from adapter.candidates import Candidate


@dataclass(frozen=True, slots=True)
class Special:
    """A special token by its name; only templates make these, never user text."""

    name: str


Segment = bytes | Special


def _digest(parent: bytes, *fields: bytes) -> bytes:
    state = hashlib.blake2b(parent, digest_size=32)
    for part in fields:
        state.update(len(part).to_bytes(8, "big") + part)
    return state.digest()


@dataclass(frozen=True, slots=True)
class Prefix:
    """A prompt in upstream ids, then what was generated so far.

    `digest` identifies the exact id sequence and is carried along, so that extending a long
    prefix costs one token.
    """

    prompt: tuple[int, ...]
    generated: tuple[int, ...] = ()
    text: bytes = b""
    digest: bytes = field(default=b"")

    @classmethod
    def of(cls, prompt: Sequence[int]) -> "Prefix":
        """The prefix that is just a prompt."""
        digest = b""
        for token in prompt:
            digest = _digest(digest, token.to_bytes(4, "big"))
        return cls(tuple(prompt), digest=digest)

    @property
    def ids(self) -> tuple[int, ...]:
        """The whole prefix in upstream ids."""
        return self.prompt + self.generated

    def extend(self, token: Candidate) -> "Prefix":
        """The prefix with one more token; it must have an id."""
        if token.id is None:
            raise ValueError("a token without an upstream id cannot extend a prefix of ids")
        digest = _digest(self.digest, token.id.to_bytes(4, "big"))
        return Prefix(self.prompt, (*self.generated, token.id), self.text + token.token, digest)
