"""Leases: whatever dies, and whenever, the replicas together never pass the cap."""

import asyncio
import functools
import random
from collections.abc import Awaitable, Callable

import pytest
import redis.asyncio

from cache.cache import Unanswered
from cache.lease import Lease
from cache.link import RedisLink
from tests.conftest import Measured
from tests.support.clock import Clock
from tests.support.counts import count
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis, redis_server
from tests.support.tcp_proxy import cut_after, delayed, instead, proxy, untouched
from tests.support.until import until

pytestmark = [pytest.mark.redis, needs_redis]

DAY = 86_400.0


class Replica:
    """A lease on a link of its own, and what was spent through it."""

    def __init__(
        self, url: str, cap: int, clock: Callable[[], float], *, deadline: float = 5
    ) -> None:
        self.spent = 0
        self.link = RedisLink(url, "totals", deadline=deadline)
        self.lease = Lease(self.link, "all", cap, clock=clock)

    async def spend(self, amount: int) -> bool:
        if not await self.lease.take(amount):
            return False
        self.spent += amount
        return True

    async def spend_all(self, amount: int) -> None:
        """Up to far more than there should be to spend."""
        while self.spent < 100_000 and await self.spend(amount):
            pass

    async def give(self, amount: int) -> None:
        self.spent -= amount
        await self.lease.give(amount)

    async def close(self) -> None:
        await self.lease.close()
        await self.link.close()


@pytest.fixture
def clock() -> Clock:
    return Clock()


async def counted(server: RedisServer, day: str = "1970-01-01") -> int:
    """What Redis says was taken and not given back."""
    async with redis.asyncio.from_url(server.url(OPERATOR)) as operator:
        taken, given = await operator.mget(
            f"adapter:total:all:{day}:taken", f"adapter:total:all:{day}:given"
        )
    return int(taken or 0) - int(given or 0)


async def test_a_block_is_a_fiftieth_or_what_is_asked_and_serves_without_asking(
    mortal: RedisServer, clock: Clock
) -> None:
    replica = Replica(mortal.url(), 10_000, clock)
    assert await replica.spend(1)
    assert await counted(mortal) == 200
    assert [await replica.spend(1) for _ in range(199)] == [True] * 199
    assert await counted(mortal) == 200
    assert await replica.spend(500)
    assert await counted(mortal) == 700
    assert not await replica.spend(10_001)
    assert await counted(mortal) == 700
    await replica.close()


async def test_the_last_block_is_what_is_left(mortal: RedisServer, clock: Clock) -> None:
    one, two = Replica(mortal.url(), 1000, clock), Replica(mortal.url(), 1000, clock)
    assert await one.spend(990)
    assert await two.spend(7)
    assert not await two.spend(4)
    assert await two.spend(3)
    assert (await counted(mortal), one.spent + two.spent) == (1000, 1000)
    await one.close()
    await two.close()
    assert await counted(mortal) == 1000


@pytest.mark.reliability("C7")
async def test_exact_when_replicas_take_at_once(
    mortal: RedisServer, clock: Clock, measured: Measured
) -> None:
    """200 requests at once on 3 replicas, money for 50."""
    runs = count(100)
    for run in range(runs):
        clock.now = run * DAY
        replicas = [Replica(mortal.url(), 50 * 7, clock) for _ in range(3)]
        taken = await asyncio.gather(*(replicas[n % 3].spend(7) for n in range(200)))
        assert taken.count(True) == 50
        await asyncio.gather(*(replica.close() for replica in replicas))
    measured(f"{runs} runs of 200 takes", "50 given in each")


async def test_what_is_held_is_given_back_on_close(mortal: RedisServer, clock: Clock) -> None:
    replica = Replica(mortal.url(), 10_000, clock)
    assert await replica.spend(30)
    await replica.give(10)
    await replica.lease.close()
    assert await counted(mortal) == 20
    assert not await replica.spend(1)
    await replica.link.close()


async def test_what_is_held_is_given_back_when_idle(mortal: RedisServer, clock: Clock) -> None:
    link = RedisLink(mortal.url(), "totals", deadline=5)
    lease = Lease(link, "all", 10_000, idle=0.05, clock=clock)
    assert await lease.take(30)
    assert await counted(mortal) == 200

    async def returned() -> bool:
        return await counted(mortal) == 30

    await until(returned)
    assert await lease.take(30)
    assert await counted(mortal) == 230
    await lease.close()
    assert await counted(mortal) == 60
    await link.close()


@pytest.mark.reliability("B5")
async def test_without_redis_only_the_rest_of_the_lease_is_spent(
    mortal: RedisServer, clock: Clock, measured: Measured
) -> None:
    replicas = [Replica(mortal.url(), 1000, clock, deadline=0.05) for _ in range(3)]
    for replica in replicas:
        await until(functools.partial(replica.spend, 5))
    held = await counted(mortal)
    mortal.freeze()
    for replica in replicas:
        await replica.spend_all(5)
    spent = sum(replica.spent for replica in replicas)
    assert spent == held
    measured(f"frozen, 3 replicas hold {held} of 1,000", f"{spent} spent")
    mortal.thaw()
    for replica in replicas:
        await replica.close()


async def test_while_redis_is_away_an_idle_lease_is_kept(mortal: RedisServer, clock: Clock) -> None:
    link = RedisLink(mortal.url(), "totals", deadline=5)
    lease = Lease(link, "all", 10_000, idle=1, clock=clock)
    assert await lease.take(1)
    mortal.kill()
    with pytest.raises(Unanswered):
        await link.call("PING")
    await asyncio.sleep(1.2)
    assert await lease.take(199)
    assert not await lease.take(1)
    await lease.close()
    await link.close()


async def test_midnight_ends_a_lease(mortal: RedisServer, clock: Clock) -> None:
    clock.now = DAY - 1
    replica = Replica(mortal.url(), 1000, clock)
    assert await replica.spend(5)
    clock.now = DAY
    await replica.give(5)  # of yesterday
    mortal.kill()
    assert not await replica.spend(1)
    await replica.close()


async def test_a_block_that_arrives_after_midnight_is_not_spent(
    mortal: RedisServer, clock: Clock
) -> None:
    clock.now = DAY - 1
    async with proxy(mortal.port) as between:
        replica = Replica(f"redis://{ACCOUNT}@127.0.0.1:{between.port}", 1000, clock)
        assert await replica.spend(20)
        between.spoil = delayed(lambda: 0.2)
        asked = asyncio.create_task(replica.spend(1))
        await asyncio.sleep(0.3)
        clock.now = DAY
        await replica.give(0)  # notices the day
        assert await asked
        assert await counted(mortal, "1970-01-01") == 40
        assert await counted(mortal, "1970-01-02") == 20
        await replica.close()
        assert await counted(mortal, "1970-01-02") == 1


@pytest.mark.parametrize("lost", ["FLUSHALL", "DEL taken", "kill"])
async def test_when_redis_forgets_nobody_takes_more(
    mortal: RedisServer, clock: Clock, lost: str, caplog: pytest.LogCaptureFixture
) -> None:
    replicas = [Replica(mortal.url(), 1000, clock) for _ in range(3)]
    for replica in replicas:
        assert await replica.spend(300)
    if lost == "kill":
        mortal.kill()
        mortal.start()
    else:
        async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
            command = lost.replace("taken", "adapter:total:all:1970-01-01:taken")
            await operator.execute_command(*command.split())
    for replica in (*replicas, *replicas):
        await asyncio.sleep(0.3 if replica.link.down else 0)
        await replica.spend_all(1)
    late = Replica(mortal.url(), 1000, clock)
    await late.spend_all(1)
    assert late.spent == 0
    assert sum(replica.spent for replica in replicas) <= 1000
    assert caplog.text.count("lost today's total") >= 1
    for replica in (*replicas, late):
        await replica.close()


async def test_who_starts_after_redis_forgot_cannot_know_it_until_another_asks(
    mortal: RedisServer, clock: Clock, caplog: pytest.LogCaptureFixture
) -> None:
    """As cache/README.md says: with one that remembers it is what was spent until then."""
    old, new = Replica(mortal.url(), 1000, clock), Replica(mortal.url(), 1000, clock)
    assert await old.spend(900)
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        await operator.flushall()
    assert await new.spend(300)
    await old.spend_all(1)  # the rest of its lease, and then it asks
    assert caplog.text.count("lost today's total") == 1
    await new.spend_all(1)
    await old.spend_all(1)
    assert old.spent == 900
    assert 300 <= new.spent <= 300 + 1000 // 50
    assert caplog.text.count("lost today's total") == 1
    for replica in (old, new):
        await replica.close()


async def test_whoever_finds_more_given_than_taken_takes_nothing(
    mortal: RedisServer, clock: Clock
) -> None:
    """Half forgotten, as by eviction: even who started since can see that."""
    old = Replica(mortal.url(), 1000, clock)
    assert await old.spend(900)
    await old.give(200)
    await old.close()
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        assert await operator.delete("adapter:total:all:1970-01-01:taken") == 1
    new = Replica(mortal.url(), 1000, clock)
    assert not await new.spend(1)
    await new.close()


async def test_counters_expire_in_two_days(mortal: RedisServer, clock: Clock) -> None:
    replica = Replica(mortal.url(), 1000, clock)
    assert await replica.spend(5)
    await replica.close()
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        keys = await operator.keys()
        lives = [await operator.ttl(key) for key in keys]
    assert len(keys) == 2
    assert all(2 * DAY - 60 < life <= 2 * DAY for life in lives)


@pytest.mark.reliability("F14")
@pytest.mark.reliability("C7")
async def test_only_the_least_rights_are_used(
    mortal: RedisServer, clock: Clock, measured: Measured
) -> None:
    replica = Replica(mortal.url(), 1000, clock)
    async with redis.asyncio.from_url(mortal.url(OPERATOR)) as operator:
        await operator.config_resetstat()
        await replica.spend_all(30)
        await replica.close()
        assert await operator.acl_log() == []
        sent = {name.removeprefix("cmdstat_") for name in await operator.info("commandstats")}
    assert sent - {"config", "acl"} == {"auth", "get", "incrby", "expire"}
    measured("a cap spent to its end", "AUTH, GET, INCRBY and EXPIRE sent, 0 refused")


async def test_a_request_that_leaves_loses_no_money(mortal: RedisServer, clock: Clock) -> None:
    async with proxy(mortal.port) as between:
        replica = Replica(f"redis://{ACCOUNT}@127.0.0.1:{between.port}", 1000, clock)
        assert await replica.spend(20)
        between.spoil = delayed(lambda: 0.5)
        asked = asyncio.create_task(replica.spend(20))

        async def counts() -> bool:
            return await counted(mortal) == 40

        await until(counts)
        asked.cancel()
        await asyncio.wait({asked})
        assert asked.cancelled()
        assert await replica.spend(20)
        assert await counted(mortal) == 40
        await replica.close()


@pytest.mark.parametrize(
    "spoil", [cut_after(1), instead(b"+OK\r\n"), instead(b":1\r\n"), instead(b"$1\r\nx\r\n")]
)
async def test_an_unclear_answer_is_never_spent(
    mortal: RedisServer, clock: Clock, spoil: Callable
) -> None:
    async with proxy(mortal.port) as between:
        replica = Replica(f"redis://{ACCOUNT}@127.0.0.1:{between.port}", 1000, clock)
        assert await replica.spend(20)
        between.spoil = spoil
        for _ in range(5):
            assert not await replica.spend(20)
            await asyncio.sleep(0.05)
        between.spoil = untouched
        await replica.close()
    assert await counted(mortal) >= replica.spent == 20


SEEDS = [*range(3), *(pytest.param(seed, marks=pytest.mark.full) for seed in range(3, 30))]


class Troubled:
    """Three replicas that spend and give back while things happen to them and to Redis."""

    def __init__(self, server: RedisServer, seed: int) -> None:
        self.chance = random.Random(seed)
        self.server = server
        self.cap = 20_000
        self.dead: list[Replica] = []
        self.replicas = [self.replica() for _ in range(3)]
        self.working = True

    @property
    def spent(self) -> int:
        return sum(replica.spent for replica in (*self.replicas, *self.dead))

    def replica(self) -> Replica:
        return Replica(self.server.url(), self.cap, Clock(), deadline=0.2)

    async def work(self, place: int) -> None:
        while self.working:
            replica, amount = self.replicas[place], self.chance.randrange(1, 300)
            if await replica.spend(amount):
                await asyncio.sleep(self.chance.random() * 0.004)
                if self.chance.random() < 0.5:
                    await replica.give(self.chance.randrange(amount + 1))
            await asyncio.sleep(self.chance.random() * 0.004)
            assert self.spent <= self.cap

    async def freeze(self) -> None:
        self.server.freeze()
        await asyncio.sleep(self.chance.random() * 0.2)
        self.server.thaw()

    async def restart(self) -> None:
        self.server.kill()
        await asyncio.sleep(self.chance.random() * 0.1)
        self.server.start()

    async def crash(self) -> None:
        """A replica ends as by kill -9, giving nothing back, and a new one takes its place."""
        place = self.chance.randrange(3)
        self.dead.append(self.replicas[place])
        self.replicas[place] = self.replica()

    async def run(self, *events: Callable[[], Awaitable[None]]) -> None:
        workers = [asyncio.create_task(self.work(n % 3)) for n in range(9)]
        for _ in range(6):
            await asyncio.sleep(0.05 + self.chance.random() * 0.1)
            await self.chance.choice(events)()
        self.working = False
        try:
            await asyncio.gather(*workers)
        finally:
            for replica in (*self.replicas, *self.dead):
                await replica.link.close()


@pytest.mark.reliability("B5")
@pytest.mark.parametrize("seed", SEEDS)
async def test_kills_at_random_moments(seed: int, measured: Measured) -> None:
    with redis_server("appendonly yes", "appendfsync always") as server:
        troubled = Troubled(server, seed)
        await troubled.run(troubled.freeze, troubled.restart, troubled.crash, troubled.crash)
        assert 0 < troubled.spent <= min(troubled.cap, await counted(server))
    measured("frozen, killed, replicas crashed at random", "never more spent than the cap")


@pytest.mark.parametrize("seed", SEEDS)
async def test_replicas_that_stay_remember_for_a_redis_that_forgets(
    mortal: RedisServer, seed: int
) -> None:
    troubled = Troubled(mortal, seed)
    await troubled.run(troubled.freeze, troubled.restart)
    assert 0 < troubled.spent <= troubled.cap
