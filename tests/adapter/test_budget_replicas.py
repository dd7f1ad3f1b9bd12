"""Budgets of several replicas on one real Redis: paid calls are counted by the upstream."""

import asyncio
from collections.abc import Iterator

import pytest

from adapter.budget import Budget
from adapter.errors import MoneyExceeded
from adapter.price import Price
from adapter.upstream.transport import Endpoint, Transport
from cache import Totals, open_totals
from tests.adapter.upstream.test_retries import Naps
from tests.conftest import Measured
from tests.support.counts import count
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.scripted import Reply, classic, scripted

pytestmark = [pytest.mark.redis, needs_redis]

PRICE = Price(input=1.0, output=4.0, cached=1.0)
CALL = 3_000 + 4_000
"""Three prompt tokens and one more, in nano-units; the upstream bills just that."""

GOOD = Reply(body=classic({"token_id:99": -0.1}), late=0.002)
REPLICAS, REQUESTS = 3, 200


@pytest.fixture(scope="module")
def redis() -> Iterator[RedisServer]:
    with redis_server() as server:
        yield server


async def race(totals: list[Totals], name: str, cap: int, sender: Transport) -> list[str]:
    """How each of 200 requests to the replicas ended."""

    async def request(number: int) -> str:
        total = totals[number % len(totals)].of(name, cap)
        budget = Budget(9, PRICE, {"limits.money_per_day": total})
        try:
            await sender.complete([5, 6, 7], {"max_tokens": 1}, budget)
        except MoneyExceeded:
            return "refused"
        return "answered"

    return await asyncio.gather(*(request(i) for i in range(REQUESTS)))


@pytest.mark.reliability("C1")
async def test_200_requests_to_3_replicas_share_a_cap_worth_50_calls(
    redis: RedisServer, measured: Measured
) -> None:
    most, runs = 0, count(100)
    for run in range(runs):
        totals = [open_totals(redis.url()) for _ in range(REPLICAS)]
        with scripted(GOOD) as script:
            sender = Transport(Endpoint(script.base_url, "m"), sleep=Naps())
            ended = await race(totals, f"{run} of {runs}", 50 * CALL, sender)
            await sender.close()
        for replica in totals:
            await replica.close()
        assert script.calls == ended.count("answered") <= 50
        most = max(most, script.calls)
    assert most > 40, "a cap nobody comes near shows nothing"
    measured(f"{runs} runs of {REQUESTS} requests", f"{most} paid calls at most")


@pytest.mark.reliability("B5")
async def test_with_redis_gone_a_replica_spends_what_it_holds_and_no_more(
    redis: RedisServer, measured: Measured
) -> None:
    cap = 500 * CALL  # a block of the lease pays for ten calls
    totals = [open_totals(redis.url()) for _ in range(REPLICAS)]
    with scripted(GOOD) as script:
        sender = Transport(Endpoint(script.base_url, "m"), sleep=Naps())
        for replica in totals:
            await replica.of("gone", cap).take(CALL)
            await replica.of("gone", cap).give(CALL)
        redis.freeze()
        try:
            ended = await race(totals, "gone", cap, sender)
        finally:
            redis.thaw()
        await sender.close()
    assert script.calls == ended.count("answered") == REPLICAS * 10
    run = f"{REQUESTS} requests, leases for {REPLICAS * 10} calls of 500"
    measured(run, f"{script.calls} paid calls")
    for replica in totals:
        await replica.close()
