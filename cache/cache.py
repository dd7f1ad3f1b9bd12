"""What every cache promises."""

from dataclasses import dataclass
from typing import Protocol


class CacheError(Exception):
    """A cache that cannot be opened or cleared; says why, without any secret."""


class Unanswered(Exception):
    """Redis was not asked, did not answer in time, or not with what was asked for.

    Whether the command was carried out is unknown.
    """


@dataclass(frozen=True)
class Stats:
    """What a cache holds now, and what this process has asked it since it was opened.

    `entries` and `bytes` are None where only the server knows them. `failures` counts calls that
    an unreachable, refusing or broken store could not serve; a `get` among them is a miss too.
    """

    entries: int | None
    bytes: int | None
    hits: int
    misses: int
    failures: int = 0


class Cache(Protocol):
    """Bytes under keys, any of which may be gone at any time."""

    @property
    def shared(self) -> bool:
        """Whether another process, or this one after a restart, finds what is put here."""
        ...

    @property
    def failures(self) -> int:
        """Calls since it was opened that its store could not serve, as in `Stats`."""
        ...

    async def get(self, key: bytes) -> bytes | None:
        """What was put under the key, None where it is not or no longer there, or not to be had."""
        ...

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value under the key, in place of what was there, where that is possible."""
        ...

    async def clear(self) -> int:
        """Drop everything and say how many entries that were. Raises CacheError."""
        ...

    async def stats(self) -> Stats:
        """Counts for operators."""
        ...

    async def close(self) -> None:
        """Let go of files and connections; the cache is not used after that."""
        ...
