"""A cache in the process's own memory."""

import time
from collections import OrderedDict
from collections.abc import Callable

from cache.cache import Stats

_OVERHEAD = 256
"""Bytes an entry costs beside its value: key, tuple and dictionary slot, rounded up."""


class MemoryCache:
    """At most `size` bytes, the least recently used go first; entries live `ttl` seconds."""

    def __init__(
        self, size: int, ttl: float, *, clock: Callable[[], float] = time.monotonic
    ) -> None:
        self._size = size
        self._ttl = ttl
        self._clock = clock
        self._entries: OrderedDict[bytes, tuple[float, bytes]] = OrderedDict()
        self._used = 0
        self._hits = 0
        self._misses = 0

    @property
    def shared(self) -> bool:
        """No: it ends with the process."""
        return False

    @property
    def failures(self) -> int:
        """None: there is nothing that could fail."""
        return 0

    @property
    def used(self) -> int:
        """Bytes taken, overhead included."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: bytes) -> bytes | None:
        """The value put under the key, if it is still kept and not too old."""
        entry = self._entries.get(key)
        if entry is not None and self._clock() >= entry[0]:
            self._drop(key)
            entry = None
        if entry is None:
            self._misses += 1
            return None
        self._hits += 1
        self._entries.move_to_end(key)
        return entry[1]

    async def put(self, key: bytes, value: bytes, *, ttl: float | None = None) -> None:
        """Keep the value, at most `ttl` seconds; one that could never fit is not kept."""
        if key in self._entries:
            self._drop(key)
        cost = len(value) + _OVERHEAD
        if cost > self._size:
            return
        while self._used + cost > self._size:
            self._drop(next(iter(self._entries)))
        life = self._ttl if ttl is None else min(ttl, self._ttl)
        self._entries[key] = (self._clock() + life, value)
        self._used += cost

    async def clear(self) -> int:
        """Drop everything and say how many entries that were."""
        count = len(self._entries)
        self._entries.clear()
        self._used = 0
        return count

    async def stats(self) -> Stats:
        """Counts; `bytes` includes the overhead."""
        return Stats(len(self._entries), self._used, self._hits, self._misses)

    async def close(self) -> None:
        """Nothing to let go of."""

    def _drop(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._used -= len(value) + _OVERHEAD
