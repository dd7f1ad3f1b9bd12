"""A total of one process: exact, and new each day."""

import asyncio

import pytest

from cache import LocalTotal, Total
from tests.support.clock import Clock

DAY = 86_400.0


async def test_takes_up_to_the_cap_and_again_what_is_given_back() -> None:
    total = LocalTotal(100, clock=Clock())
    taken = [await total.take(amount) for amount in (60, 50, 40, 1, 0)]
    assert taken == [True, False, True, False, True]
    await total.give(30)
    assert [await total.take(amount) for amount in (31, 30, 1)] == [False, True, False]


async def test_exact_when_many_take_at_once() -> None:
    total = LocalTotal(50 * 7, clock=Clock())
    taken = await asyncio.gather(*(total.take(7) for _ in range(200)))
    assert taken.count(True) == 50


async def test_midnight_begins_anew_and_forgets_what_is_late() -> None:
    clock = Clock()
    total = LocalTotal(100, clock=clock)
    clock.now = DAY - 1
    assert await total.take(100)
    clock.now = DAY
    assert await total.take(70)
    await total.give(100)  # of yesterday
    assert not await total.take(31)
    clock.now = DAY + 600
    await total.give(70)
    assert [await total.take(amount) for amount in (101, 100)] == [False, True]


async def test_a_clock_set_back_brings_nothing() -> None:
    clock = Clock()
    clock.now = 5 * DAY
    total = LocalTotal(100, clock=clock)
    assert await total.take(100)
    clock.now = 4 * DAY
    assert not await total.take(1)
    clock.now = 5 * DAY
    assert not await total.take(1)


async def test_negative_amounts_are_errors() -> None:
    total: Total = LocalTotal(100, clock=Clock())
    with pytest.raises(ValueError, match="negative"):
        await total.take(-1)
    with pytest.raises(ValueError, match="negative"):
        await total.give(-1)
    assert await total.take(100)


async def test_nothing_after_close() -> None:
    total = LocalTotal(100, clock=Clock())
    await total.close()
    assert not await total.take(1)
