"""The memory cache: bounded in bytes and in time."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cache import MemoryCache, Stats
from tests.support.clock import Clock


async def test_keeps_what_was_put() -> None:
    cache = MemoryCache(10_000, 60)
    await cache.put(b"k", b"one")
    await cache.put(b"k", b"two")
    assert await cache.get(b"k") == b"two"
    assert await cache.get(b"other") is None
    assert len(cache) == 1


async def test_entries_die_of_age() -> None:
    clock = Clock()
    cache = MemoryCache(10_000, 10, clock=clock)
    await cache.put(b"k", b"v")
    clock.now = 9.9
    assert await cache.get(b"k") == b"v"
    clock.now = 10.0
    assert await cache.get(b"k") is None
    assert (len(cache), cache.used) == (0, 0)


async def test_a_put_may_shorten_a_life_and_never_lengthen_it() -> None:
    clock = Clock()
    cache = MemoryCache(10_000, 10, clock=clock)
    await cache.put(b"short", b"v", ttl=3)
    await cache.put(b"long", b"v", ttl=30)
    clock.now = 3.0
    assert (await cache.get(b"short"), await cache.get(b"long")) == (None, b"v")
    clock.now = 10.0
    assert await cache.get(b"long") is None


async def test_counts_and_clears() -> None:
    cache = MemoryCache(10_000, 60)
    await cache.put(b"a", bytes(10))
    await cache.put(b"b", bytes(20))
    await cache.get(b"a")
    await cache.get(b"c")
    await cache.get(b"d")
    assert await cache.stats() == Stats(entries=2, bytes=30 + 2 * 256, hits=1, misses=2)
    assert await cache.clear() == 2
    assert (await cache.get(b"a"), cache.used, len(cache)) == (None, 0, 0)
    assert not cache.shared


async def test_the_least_recently_used_go_first() -> None:
    cache = MemoryCache(3 * 300, 60)
    for key in (b"a", b"b", b"c"):
        await cache.put(key, bytes(20))
    await cache.get(b"a")
    await cache.put(b"d", bytes(20))
    kept = [key for key in (b"a", b"b", b"c", b"d") if await cache.get(key) is not None]
    assert kept == [b"a", b"c", b"d"]


async def test_what_can_never_fit_is_not_kept_and_displaces_only_itself() -> None:
    cache = MemoryCache(1000, 60)
    await cache.put(b"a", b"small")
    await cache.put(b"b", bytes(1000))
    assert await cache.get(b"a") == b"small"
    await cache.put(b"a", bytes(1000))
    assert await cache.get(b"a") is None


@settings(deadline=None)
@given(st.lists(st.tuples(st.integers(0, 9), st.integers(0, 1500)), max_size=40))
async def test_never_holds_more_than_its_size(puts: list) -> None:
    cache = MemoryCache(2000, 60)
    for key, length in puts:
        await cache.put(bytes([key]), bytes(length))
        assert cache.used <= 2000
        kept = [await cache.get(bytes([k])) for k in range(10)]
        assert sum(len(v) + 256 for v in kept if v is not None) == cache.used
