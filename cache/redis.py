"""A cache in a Redis that replicas share."""

from typing import TYPE_CHECKING, Any

from cache.cache import Stats, Unanswered

if TYPE_CHECKING:
    from cache.link import RedisLink

_PREFIX = "adapter:cache:"


class RedisCache:
    """Entries that Redis drops after `ttl` seconds, and by its own maxmemory-policy.

    No call fails and none waits longer than 35 ms: without an answer a `get` is a miss and a
    `put` does nothing.
    """

    def __init__(self, link: "RedisLink", ttl: float) -> None:
        self._link = link
        self._ttl = max(1, round(ttl * 1000))
        self._hits = 0
        self._misses = 0
        self._failures = 0

    @property
    def shared(self) -> bool:
        """Yes, by everyone with the same secret."""
        return True

    @property
    def failures(self) -> int:
        """Calls that Redis did not serve, those during an outage included."""
        return self._failures

    async def get(self, key: bytes) -> bytes | None:
        """The value, None where there is none or Redis does not give it in time."""
        value = await self._ask("GET", _PREFIX + key.hex())
        if isinstance(value, bytes):
            self._hits += 1
            return value
        self._misses += 1
        return None

    async def put(self, key: bytes, value: bytes) -> None:
        """Keep the value if Redis takes it in time."""
        await self._ask("SET", _PREFIX + key.hex(), value, "PX", self._ttl)

    async def clear(self) -> int:
        """Delete every entry of every replica. Raises CacheError, as where SCAN is forbidden."""
        return await self._link.delete_all(_PREFIX + "*")

    async def stats(self) -> Stats:
        """Counts of this process; what Redis holds only Redis knows."""
        return Stats(None, None, self._hits, self._misses, self._failures)

    async def close(self) -> None:
        """Close the link."""
        await self._link.close()

    async def _ask(self, *command: bytes | str | int) -> Any:
        try:
            answer = await self._link.call(*command)
            if command[0] == "GET" and not (answer is None or isinstance(answer, bytes)):
                raise self._link.nonsense()
        except Unanswered:
            self._failures += 1
            return None
        return answer
