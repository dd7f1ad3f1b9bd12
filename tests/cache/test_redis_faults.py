"""Redis may die at any time and in any way: no request fails, none waits twice, little is said."""

import asyncio
import contextlib
import logging
import time
from collections.abc import AsyncIterator, Callable

import pytest
import redis.asyncio

from cache import seal, unseal
from cache.cache import Unanswered
from cache.link import RedisLink
from cache.memory import MemoryCache
from cache.redis import RedisCache
from cache.tiered import TieredCache
from tests.conftest import Measured
from tests.support.clock import Clock
from tests.support.counts import count
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis, redis_server
from tests.support.tcp_proxy import Spoil, cut_after, delayed, instead, proxy, sliced
from tests.support.until import until

pytestmark = [pytest.mark.redis, needs_redis]

Log = pytest.LogCaptureFixture
VALUE = bytes(2000)
REQUESTS = 1000
HANG = 2.0
"""Seconds: what this guards against takes three and more."""


@pytest.fixture(autouse=True)
def log(caplog: Log) -> Log:
    caplog.set_level(logging.INFO)
    return caplog


def cache_at(url: str, clock: Callable[[], float] = time.monotonic) -> RedisCache:
    return RedisCache(RedisLink(url, "cache", clock=clock), 60)


def sealed(n: int) -> tuple[bytes, bytes]:
    key = bytes([n])
    return key, seal(key, VALUE + key)


async def warm(cache: RedisCache, clock: Clock | None = None) -> None:
    """Put the entries that the requests of these tests read, however busy the machine is."""

    async def kept() -> bool:
        if clock is not None:
            clock.now += 10
        for n in range(10):
            await cache.put(*sealed(n))
        return None not in [await cache.get(bytes([n])) for n in range(10)]

    await until(kept)


async def requests(cache: RedisCache, count: int = REQUESTS) -> list[float]:
    """Read and write so often, 20 at a time; gives the seconds each took, sorted. None may fail."""

    async def request(n: int) -> float:
        key, blob = sealed(n % 10)
        begun = time.perf_counter()
        found = await cache.get(key)
        await cache.put(*sealed(100 + n % 10))
        cost = time.perf_counter() - begun
        assert found is None or found == blob or unseal(key, found) is None
        return cost

    costs: list[float] = []
    for start in range(0, count, 20):
        costs += await asyncio.gather(*(request(n) for n in range(start, start + 20)))
    return sorted(costs)


def assert_quiet(costs: list[float], log: Log) -> None:
    assert costs[-1] < HANG
    assert len(log.records) <= 2
    assert all(record.exc_info is None for record in log.records)
    assert not any(part in log.text for part in ACCOUNT.split(":"))


def assert_cheap_and_quiet(costs: list[float], log: Log) -> None:
    """After the first ones nobody waits: ten times the goal of 1 ms for most."""
    assert_quiet(costs, log)
    assert costs[len(costs) // 2] < 0.01


@pytest.mark.reliability("B4")
@pytest.mark.parametrize(
    ("fault", "repair"),
    [(RedisServer.freeze, RedisServer.thaw), (RedisServer.kill, RedisServer.start)],
    ids=["frozen", "killed"],
)
async def test_lost_and_found(
    mortal: RedisServer,
    log: Log,
    fault: Callable[[RedisServer], None],
    repair: Callable[[RedisServer], None],
) -> None:
    clock = Clock()
    cache = cache_at(mortal.url(), clock)
    await warm(cache, clock)
    fault(mortal)
    costs = await requests(cache)
    for _ in range(3):  # probes, one after the other
        clock.now += 10
        assert await cache.get(b"\0") is None
        await asyncio.sleep(0.4)
    costs += await requests(cache)
    assert_cheap_and_quiet(sorted(costs), log)
    assert [record.levelname for record in log.records] == ["WARNING"]
    repair(mortal)
    await warm(cache, clock)
    clock.now += 10
    await warm(cache, clock)
    assert [record.levelname for record in log.records] == ["WARNING", "INFO"]
    await cache.close()


@pytest.mark.reliability("B4")
async def test_never_there(log: Log, measured: Measured) -> None:
    """Nobody listens, from the start on."""
    with redis_server() as server:
        url = server.url()
    cache = cache_at(url)
    assert_cheap_and_quiet(await requests(cache, count(10_000)), log)
    measured(f"{count(10_000):,} requests", f"{len(log.records)} log lines")
    await cache.close()


@pytest.mark.reliability("B3")
async def test_hits_come_back_within_ten_seconds(mortal: RedisServer, measured: Measured) -> None:
    frozen = count(30)
    cache = cache_at(mortal.url())
    await warm(cache)
    mortal.freeze()
    end = time.monotonic() + frozen
    while time.monotonic() < end:
        await requests(cache, 100)
        await asyncio.sleep(0.1)
    mortal.thaw()
    begun = time.monotonic()
    async with asyncio.timeout(100):  # ten times the goal
        await warm(cache)
    took = time.monotonic() - begun
    measured(f"{frozen} s frozen", f"hits again after {took:.1f} s", met=took <= 10)
    await cache.close()


@pytest.mark.reliability("B2")
async def test_what_losing_it_costs(mortal: RedisServer, measured: Measured) -> None:
    """The first three calls after each freezing, and those that find the breaker open."""
    first: list[float] = []
    later: list[float] = []
    for _ in range(count(100)):
        cache = cache_at(mortal.url())
        await warm(cache)
        mortal.freeze()
        for costs, calls in ((first, 3), (later, 100)):
            for n in range(calls):
                begun = time.perf_counter()
                assert await cache.get(bytes([n % 10])) is None
                costs.append(1e3 * (time.perf_counter() - begun))
        mortal.thaw()
        await cache.close()
    slow, quick = (sorted(costs)[len(costs) * 99 // 100] for costs in (first, later))
    assert slow < 1e3 * HANG
    assert sorted(later)[len(later) // 2] < 10
    met = slow <= 50 and quick <= 1
    run = f"{count(100)} times frozen"
    measured(run, f"p99 {slow:.1f} ms for the first three, then {quick:.3f} ms", met=met)


async def test_who_asks_together_waits_together(mortal: RedisServer) -> None:
    """200 readers, far more than there are connections, cost one deadline and not one each."""
    cache = cache_at(mortal.url())
    await warm(cache)
    mortal.freeze()
    begun = time.perf_counter()
    found = await asyncio.gather(*(cache.get(bytes([n % 10])) for n in range(200)))
    assert found == [None] * 200
    assert time.perf_counter() - begun < HANG
    assert (await cache.stats()).failures == 200
    await cache.close()


async def test_the_client_alone_gives_up_too(mortal: RedisServer) -> None:
    """Without the outer deadline: redis-py's defaults would block for seconds and ask ten times."""
    link = RedisLink(mortal.url(), "cache")
    await link.call("PING")
    mortal.freeze()
    begun = time.perf_counter()
    with pytest.raises(redis.exceptions.TimeoutError):
        await link._client.get("adapter:k")
    assert time.perf_counter() - begun < HANG
    mortal.kill()
    begun = time.perf_counter()
    with pytest.raises(redis.exceptions.ConnectionError):
        await link._client.get("adapter:k")
    assert time.perf_counter() - begun < HANG
    await link.close()


async def test_a_wrong_password(steady: RedisServer, log: Log) -> None:
    cache = cache_at(steady.url("adapter:not-the-password"))
    assert_cheap_and_quiet(await requests(cache), log)
    assert (await cache.stats()).hits == 0
    assert "not-the-password" not in log.text
    await cache.close()


async def test_an_account_that_may_do_nothing(mortal: RedisServer, log: Log) -> None:
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        await operator.execute_command("ACL", "SETUSER", "adapter", "-@all")
    cache = cache_at(mortal.url())
    assert_quiet(await requests(cache), log)
    assert [r.message.rpartition(" ")[2] for r in log.records] == ["(NoPermissionError)"]
    await cache.close()


@pytest.mark.parametrize(
    ("settings", "error"),
    [
        (("maxmemory 1mb", "maxmemory-policy noeviction"), "OutOfMemoryError"),
        (("replicaof 127.0.0.1 1",), "ReadOnlyError"),
    ],
    ids=["full", "replica"],
)
async def test_a_server_that_refuses_writes_still_serves_reads(
    log: Log, settings: tuple[str, ...], error: str
) -> None:
    with redis_server() as server:
        operator = redis.asyncio.from_url(server.url(OPERATOR))
        cache = RedisCache(RedisLink(server.url(), "cache", deadline=5), 60)
        await warm(cache)
        for setting in settings:
            name, _, value = setting.partition(" ")
            if name == "replicaof":
                await operator.replicaof(*value.split())
            else:
                await operator.config_set(name, value)
        before = (await cache.stats()).hits
        assert_quiet(await requests(cache), log)
        stats = await cache.stats()
        assert (stats.hits - before, stats.failures) == (REQUESTS, REQUESTS)
        assert [r.message.rpartition(" ")[2] for r in log.records] == [f"({error})"]
        await operator.aclose()
        await cache.close()


async def test_a_server_that_is_loading(mortal: RedisServer, log: Log) -> None:
    """It takes 20 ms for each of 40 keys, and after each says LOADING to who asks."""
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        await operator.config_set("rdbcompression", "no")
        for n in range(40):
            await operator.set(f"adapter:{n}", bytes(2_200_000))
        await operator.save()
    mortal.kill()
    mortal.start("key-load-delay 20000")
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        with pytest.raises(redis.exceptions.BusyLoadingError):
            await operator.get("adapter:1")
    clock = Clock()
    cache = cache_at(mortal.url(), clock)
    assert_cheap_and_quiet(await requests(cache), log)
    await warm(cache, clock)
    await cache.close()


@contextlib.asynccontextmanager
async def spoiled(
    server: RedisServer, spoil: Spoil, deadline: float = 0.05
) -> AsyncIterator[RedisCache]:
    """A cache whose connection is good until its entries are there, and then spoiled."""
    async with proxy(server.port) as between:
        url = f"redis://{ACCOUNT}@127.0.0.1:{between.port}"
        cache = RedisCache(RedisLink(url, "cache", deadline=deadline), 60)
        await warm(cache)
        between.spoil = spoil
        yield cache
        await cache.close()


@pytest.mark.parametrize(
    "spoil",
    [
        delayed(lambda: 2.0),
        sliced(0.001),
        cut_after(1),
        cut_after(5),
        cut_after(100),
        cut_after(5000),
        instead(b":1\r\n"),
        instead(b"*1\r\n" * 2000),
        instead(b"$9999999999999\r\n"),
        instead(b"$x\r\n"),
        instead(b"HTTP/1.1 400 Bad Request\r\n\r\n"),
        instead(bytes(range(256)) * 100),
    ],
    ids=[
        "2 s late",
        "byte by byte",
        "cut after 1",
        "cut after 5",
        "cut after 100",
        "cut after 5000",
        "1 to all",
        "nested deeply",
        "endless",
        "bad length",
        "a web server",
        "noise",
    ],
)
async def test_answers_that_are_late_cut_or_senseless(
    steady: RedisServer, log: Log, spoil: Spoil
) -> None:
    async with spoiled(steady, spoil) as cache:
        costs = await requests(cache)
    assert_cheap_and_quiet(costs, log)


@pytest.mark.parametrize(
    "answer", [b"-MASTERDOWN Link with MASTER is down", b"-", b"-\xff\xfe", b"+OK"]
)
async def test_the_same_answer_to_everything(steady: RedisServer, log: Log, answer: bytes) -> None:
    """It comes at once, so asking on costs nothing; a wrong value is the envelope's business."""
    async with spoiled(steady, instead(answer + b"\r\n")) as cache:
        costs = await requests(cache)
    assert_quiet(costs, log)


async def test_slices_that_come_in_time_are_read(steady: RedisServer, log: Log) -> None:
    async with spoiled(steady, sliced(0), deadline=5) as cache:
        await cache.put(b"short", b"v")
        assert await cache.get(b"short") == b"v"
    assert log.records == []


async def test_a_request_that_leaves_is_no_fault_of_redis(steady: RedisServer) -> None:
    async with proxy(steady.port) as between:
        link = RedisLink(f"redis://{ACCOUNT}@127.0.0.1:{between.port}", "cache", deadline=5)
        cache = RedisCache(link, 60)
        await warm(cache)
        between.spoil = delayed(lambda: 3)
        for _ in range(20):
            asked = asyncio.create_task(cache.get(b"\0"))
            await asyncio.sleep(0.001)
            asked.cancel()
            await asyncio.wait({asked})
            assert asked.cancelled()
        assert not link.down
        assert (await cache.stats()).failures == 0
        await cache.close()


async def test_when_this_process_stands_still_redis_is_not_blamed_at_once(
    mortal: RedisServer,
) -> None:
    """An answer that comes while the loop is blocked is too late to be read, and no outage."""
    link = RedisLink(mortal.url(), "cache")
    mortal.freeze()
    blamed = []
    for _ in range(4):
        asked = [asyncio.create_task(link.call("PING")) for _ in range(5)]
        await asyncio.sleep(0.01)
        time.sleep(0.2)  # noqa: ASYNC251 - the blocking is what is tested
        answers = await asyncio.gather(*asked, return_exceptions=True)
        assert [type(answer) for answer in answers] == [Unanswered] * 5
        blamed.append(link.down)
    assert blamed == [False, False, True, True]
    mortal.thaw()
    await link.close()


@pytest.mark.reliability("B3")
async def test_one_probe_at_a_time(steady: RedisServer) -> None:
    clock = Clock()
    async with proxy(steady.port) as between:
        cache = cache_at(f"redis://{ACCOUNT}@127.0.0.1:{between.port}", clock)
        between.spoil = delayed(lambda: 5)
        while not cache._link.down:  # a busy machine that stood still blames itself first
            await cache.get(b"\0")
        before = between.connections
        clock.now += 10
        assert await asyncio.gather(*(cache.get(bytes([n])) for n in range(100))) == [None] * 100
        await asyncio.sleep(0.02)
        assert between.connections == before + 1
        await cache.close()  # with the probe under way
        assert not any("_ping" in repr(task) for task in asyncio.all_tasks())


async def test_memory_bridges_the_outage(mortal: RedisServer) -> None:
    cache = TieredCache(MemoryCache(10**6, 60), cache_at(mortal.url()))
    await cache.put(b"near", VALUE)
    mortal.kill()
    await cache.put(b"during", VALUE)
    assert [await cache.get(key) for key in (b"near", b"during", b"never")] == [VALUE, VALUE, None]
    await cache.close()
