"""Addresses: which cache they mean, what is wrong with others, and what is never repeated."""

from pathlib import Path

import pytest

import cache
from cache import Cache, CacheError, LocalTotal, Totals, is_shared, open_cache, open_totals
from cache.lease import Lease
from cache.link import RedisLink
from tests.support.redis_server import RedisServer, needs_redis
from tests.support.until import until


def test_what_the_package_offers() -> None:
    names = "Cache CacheError Flight Keys Lease LocalTotal MemoryCache Stats Total Totals"
    assert cache.__all__ == [
        *names.split(),
        *["is_shared", "open_cache", "open_totals", "place", "seal", "unseal"],
    ]


def test_none_is_no_cache() -> None:
    assert open_cache("none", 1000, 60) is None
    assert not is_shared("none")


async def kept(url: str) -> bytes | None:
    """Put an entry, open the cache again and ask for it."""
    one = open_cache(url, 10**6, 60)
    assert one is not None
    assert one.shared == is_shared(url)
    await one.put(b"kept", b"v")
    assert await one.get(b"kept") == b"v"
    await one.close()
    two: Cache | None = open_cache(url, 10**6, 60)
    assert two is not None
    value = await two.get(b"kept")
    await two.close()
    return value


def files(directory: Path) -> set[str]:
    return {file.name for file in directory.iterdir()}


async def test_memory_and_file(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert await kept("memory://") is None
    assert await kept(f"sqlite:///{tmp_path}/cache.db") == b"v"
    assert await kept("sqlite:///relative.db") == b"v"
    assert files(tmp_path) == {"cache.db", "relative.db"}


@pytest.mark.redis
@needs_redis
async def test_redis(steady: RedisServer) -> None:
    async def found() -> bool:
        """A busy machine may miss a deadline of 50 ms."""
        return await kept(steady.url()) == b"v"

    await until(found)


async def test_a_redis_need_not_be_there() -> None:
    absent = open_cache("redis://u:secret@127.0.0.1:1", 10**6, 60)
    assert absent is not None
    await absent.put(b"k", b"v")
    assert await absent.get(b"k") == b"v"
    assert await absent.get(b"other") is None
    await absent.close()


UNKNOWN = "memory|memcached://h|redis:/h|redis|none://|memory://x|sqlite://x.db|sqlite:///"
SECRET = "redis://u:pass@h:port|redis+x://u:pass@h|NONE|u:pass@h|"


@pytest.mark.parametrize("url", [*UNKNOWN.split("|"), *SECRET.split("|")])
def test_other_addresses_are_refused_without_being_repeated(url: str) -> None:
    with pytest.raises(CacheError) as told:
        open_cache(url, 1000, 60)
    assert "pass" not in str(told.value)


def test_the_message_names_what_there_is() -> None:
    with pytest.raises(CacheError, match="memory://, sqlite:///FILE, redis://") as told:
        is_shared("memcached://h")
    assert "rediss://" in str(told.value)
    assert "none" in str(told.value)


async def test_totals_are_local_where_there_is_no_redis(tmp_path: Path) -> None:
    for url in ("none", "memory://", f"sqlite:///{tmp_path}/cache.db"):
        totals = open_totals(url)
        total = totals.of("all", 100)
        assert isinstance(total, LocalTotal)
        assert totals.of("all", 100) is total
        assert totals.of("one", 100) is not total
        assert await total.take(100)
        assert not await total.take(1)
        await totals.close()
    assert files(tmp_path) == set()


@pytest.mark.redis
@needs_redis
async def test_totals_are_shared_through_a_redis(mortal: RedisServer) -> None:
    opened = open_totals(mortal.url())
    assert isinstance(opened.of("a", 1000), Lease)
    await opened.close()
    links = [RedisLink(mortal.url(), "totals", deadline=5) for _ in range(2)]
    one, two = (Totals(link) for link in links)
    names = ("a:b", "a", "all keys / ü", "")
    for name in names:
        assert await one.of(name, 1000).take(990)
    await one.close()
    for name in names:
        assert not await two.of(name, 1000).take(11)
        assert await two.of(name, 1000).take(10)
    await two.close()
