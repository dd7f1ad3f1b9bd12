"""Memory in front of a shared cache."""

from cache.cache import Cache, Stats
from cache.memory import MemoryCache

_FAR_MOST = 64 * 1024
"""Bytes of the largest value that leaves the process."""

_COPY_TTL = 60.0
"""Seconds a copy lives here: a shared entry's age is unknown, so it may outlive it by this much."""


class TieredCache:
    """Asks `near` first, then `far`; both get what is put, `far` only up to 64 KiB a value."""

    def __init__(self, near: MemoryCache, far: Cache) -> None:
        self._near = near
        self._far = far

    @property
    def shared(self) -> bool:
        """What the far one is."""
        return self._far.shared

    @property
    def failures(self) -> int:
        """The far one's."""
        return self._far.failures

    async def get(self, key: bytes) -> bytes | None:
        """The value from the nearest that has it; memory keeps a copy."""
        value = await self._near.get(key)
        if value is None:
            value = await self._far.get(key)
            if value is not None:
                await self._near.put(key, value, ttl=_COPY_TTL)
        return value

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value in both, or in memory alone."""
        await self._near.put(key, value)
        if len(value) <= _FAR_MOST:
            await self._far.put(key, value)

    async def clear(self) -> int:
        """Clear both; returns the far one's count. Raises CacheError."""
        await self._near.clear()
        return await self._far.clear()

    async def stats(self) -> Stats:
        """What the far one holds, memory where it cannot say; a miss is one in both."""
        near, far = await self._near.stats(), await self._far.stats()
        known = near if far.entries is None else far
        return Stats(
            known.entries, known.bytes, near.hits + far.hits, far.misses, failures=far.failures
        )

    async def close(self) -> None:
        """Close both."""
        await self._near.close()
        await self._far.close()
