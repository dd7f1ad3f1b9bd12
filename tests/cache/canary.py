"""The cancelled reads of promise A1 against redis-py alone: old versions hand on others' answers.

    python -m venv /tmp/old && /tmp/old/bin/pip install redis==4.5.1 async-timeout
    REDIS_451_PYTHON=/tmp/old/bin/python python -m tests.reliability A1

Run by that interpreter with the port of a Redis and its account; needs nothing but redis-py.
"""

import asyncio
import json
import random
import sys

import redis
import redis.asyncio

from tests.support.tcp_proxy import delayed, proxy

_KEYS = 64


async def storm(port: int, account: str, reads: int) -> dict[str, int]:
    """What so many reads at most came to, until a hundred have shown the value of another key."""
    chance = random.Random(1)
    name, password = account.split(":")
    outcomes = {"own": 0, "foreign": 0, "cancelled": 0, "failed": 0}
    async with proxy(port) as slow:
        client = redis.asyncio.Redis(port=slow.port, username=name, password=password)
        for n in range(_KEYS):
            await client.set(f"adapter:canary:{n}", n)
        slow.spoil = delayed(lambda: chance.random() * 0.004)

        async def read(n: int) -> None:
            asked = asyncio.create_task(client.get(f"adapter:canary:{n}"))
            await asyncio.sleep(chance.random() * chance.choice((0.006, 0.06)))
            asked.cancel()
            try:
                value = await asked
            except asyncio.CancelledError:
                outcomes["cancelled"] += 1
            except Exception:  # noqa: BLE001 - a broken client fails in many ways
                outcomes["failed"] += 1
            else:
                outcomes["own" if value == b"%d" % n else "foreign"] += 1

        while outcomes["foreign"] < 100 and sum(outcomes.values()) < reads:
            await asyncio.gather(*(read(chance.randrange(_KEYS)) for _ in range(16)))
    return outcomes


if __name__ == "__main__":
    seen = asyncio.run(storm(int(sys.argv[1]), sys.argv[2], int(sys.argv[3])))
    sys.stdout.write(json.dumps(seen | {"version": redis.__version__}))
