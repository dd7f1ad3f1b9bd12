"""A cache in the process's own memory."""

import time
from collections import OrderedDict
from collections.abc import Callable

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

    @property
    def used(self) -> int:
        """Bytes taken, overhead included."""
        return self._used

    def __len__(self) -> int:
        return len(self._entries)

    async def get(self, key: bytes) -> bytes | None:
        """The value put under the key, if it is still kept and not too old."""
        entry = self._entries.get(key)
        if entry is None:
            return None
        expires, value = entry
        if self._clock() >= expires:
            self._drop(key)
            return None
        self._entries.move_to_end(key)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value; one that could never fit is not kept."""
        if key in self._entries:
            self._drop(key)
        cost = len(value) + _OVERHEAD
        if cost > self._size:
            return
        while self._used + cost > self._size:
            self._drop(next(iter(self._entries)))
        self._entries[key] = (self._clock() + self._ttl, value)
        self._used += cost

    def _drop(self, key: bytes) -> None:
        _, value = self._entries.pop(key)
        self._used -= len(value) + _OVERHEAD
