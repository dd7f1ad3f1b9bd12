"""Memory in front of a shared cache: who is asked, who is told, how long a copy lives."""

from cache import MemoryCache, Stats
from cache.tiered import TieredCache
from tests.support.clock import Clock


def tiers(clock: Clock) -> tuple[MemoryCache, MemoryCache, TieredCache]:
    near, far = MemoryCache(10**6, 1000, clock=clock), MemoryCache(10**6, 1000, clock=clock)
    return near, far, TieredCache(near, far)


async def test_both_are_told_and_the_near_one_answers() -> None:
    near, far, cache = tiers(Clock())
    await cache.put(b"k", b"v")
    assert (await near.get(b"k"), await far.get(b"k")) == (b"v", b"v")
    await far.put(b"k", b"other")
    assert await cache.get(b"k") == b"v"


async def test_what_only_the_far_one_has_is_copied_for_a_minute() -> None:
    clock = Clock()
    near, far, cache = tiers(clock)
    await far.put(b"k", b"v")
    assert await cache.get(b"k") == b"v"
    assert await near.get(b"k") == b"v"
    clock.now = 60
    assert await near.get(b"k") is None
    assert await cache.get(b"k") == b"v"


async def test_large_values_stay_here() -> None:
    near, far, cache = tiers(Clock())
    await cache.put(b"most", bytes(64 * 1024))
    await cache.put(b"more", bytes(64 * 1024 + 1))
    assert await cache.get(b"more") == bytes(64 * 1024 + 1)
    assert await far.get(b"more") is None
    assert await far.get(b"most") == bytes(64 * 1024)
    assert len(near) == 2


async def test_counts_each_answer_once() -> None:
    _, far, cache = tiers(Clock())
    await far.put(b"far", b"12345")
    for key in (b"far", b"far", b"none"):
        await cache.get(key)
    assert await cache.stats() == Stats(entries=1, bytes=5 + 256, hits=2, misses=1)


async def test_clears_both() -> None:
    near, far, cache = tiers(Clock())
    for n in range(3):
        await cache.put(bytes([n]), b"v")
    await near.put(b"near", b"v")
    assert await cache.clear() == 3
    assert (len(near), len(far)) == (0, 0)
    assert not cache.shared
