"""Caches and totals by their address."""

import asyncio
from pathlib import Path
from typing import TYPE_CHECKING

from cache.cache import Cache, CacheError
from cache.lease import Lease
from cache.memory import MemoryCache
from cache.redis import RedisCache
from cache.sqlite import SqliteCache
from cache.tiered import TieredCache
from cache.totals import LocalTotal, Total

if TYPE_CHECKING:
    from cache.link import RedisLink

_LONGER = ("sqlite://", "redis://", "rediss://")
_BLOCK = 0.05
"""Seconds to wait for a block of a total; longer than for entries, one not answered is lost."""

_KNOWN = "memory://, sqlite:///FILE, redis://HOST, rediss://HOST or none"


def is_shared(url: str) -> bool:
    """Whether entries at this address outlive the process or meet other processes.

    Their keys then need a secret that does, too. Raises CacheError for an unknown address.
    """
    return _scheme(url) in ("sqlite", "redis", "rediss")


def open_cache(url: str, size: int, ttl: float) -> Cache | None:
    """The cache at an address, None for `none`; `size` in bytes bounds each tier, `ttl` seconds.

    A Redis need not be there, now or later; a file must be usable. Raises CacheError.
    """
    scheme = _scheme(url)
    if scheme == "none":
        return None
    near = MemoryCache(size, ttl)
    if scheme == "memory":
        return near
    if scheme == "sqlite":
        return TieredCache(near, SqliteCache(_file(url), size, ttl))
    return TieredCache(near, RedisCache(_link()(url, "cache"), ttl))


class Totals:
    """Totals by name: leases where there is a Redis to share them through, else local ones."""

    def __init__(self, link: "RedisLink | None") -> None:
        self._link = link
        self._totals: dict[str, Total] = {}

    def of(self, name: str, cap: int) -> Total:
        """The total of this name, the same one each time; the first `cap` counts."""
        if name not in self._totals:
            link = self._link
            self._totals[name] = LocalTotal(cap) if link is None else Lease(link, name, cap)
        return self._totals[name]

    async def close(self) -> None:
        """Give back what all of them hold, then close the link."""
        await asyncio.gather(*(total.close() for total in self._totals.values()))
        if self._link is not None:
            await self._link.close()


def open_totals(url: str) -> Totals:
    """Daily totals, shared through the Redis at a cache's address, else of this process alone.

    Raises CacheError.
    """
    redis = _scheme(url) in ("redis", "rediss")
    return Totals(_link()(url, "totals", deadline=_BLOCK) if redis else None)


def _link() -> "type[RedisLink]":
    from cache.link import RedisLink  # 80 ms that only those with a Redis should pay

    return RedisLink


def _scheme(url: str) -> str:
    """The kind of cache; the message never repeats the address, which may hold a password."""
    scheme = url.partition("://")[0]
    if url not in ("memory://", "none") and not url.startswith(_LONGER):
        raise CacheError(f"no cache has such an address; use {_KNOWN}")
    if scheme == "sqlite":
        _file(url)
    return scheme


def _file(url: str) -> Path:
    """The path after the third slash, as it stands: relative, or absolute with a fourth."""
    path = url.removeprefix("sqlite:///")
    if path in (url, ""):
        raise CacheError("a file's address is sqlite:///FILE, or sqlite:////FILE from the root")
    return Path(path)
