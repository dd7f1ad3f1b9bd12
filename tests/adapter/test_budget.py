"""Budgets: reserved before, settled after, exact whatever races."""

import asyncio
import logging
from contextlib import suppress

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.budget import Budget, RequestTotal
from adapter.candidates import Usage
from adapter.errors import BudgetExceeded, MoneyExceeded
from adapter.price import Price, nanos
from cache import LocalTotal
from tests.adapter.upstream.vocabularies import thorough
from tests.support.totals import Watched

PRICE = Price(input=1.0, output=4.0, cached=0.25)
"""1000, 4000 and 250 nano-units a token."""


class Kept:
    """A ledger that keeps all entries."""

    def __init__(self) -> None:
        self.amounts: list[int] = []
        self.caps: list[str] = []

    def spent(self, nanos: int) -> None:
        self.amounts.append(nanos)

    def refused(self, cap: str) -> None:
        self.caps.append(cap)


def used(prompt: int, completion: int, cached: int = 0) -> Usage:
    return Usage(1, prompt, cached, completion)


def test_prices_are_exact_and_rounded_up() -> None:
    assert PRICE.nanos(used(10, 3)) == 22_000
    assert PRICE.nanos(used(10, 3, cached=4)) == 19_000
    assert PRICE.nanos(used(10, 3, cached=99)) == 14_500  # no more can be cached than was sent
    assert Price(0.1, 0.2, 0.1).nanos(used(3, 3)) == 900
    assert Price(1e-6, 0.0, 0.0).nanos(used(1, 0)) == 1
    assert nanos(0.1) * 10 == nanos(1.0)


async def test_the_difference_is_given_back() -> None:
    day, ledger = Watched(10**9), Kept()
    budget = Budget(9, PRICE, {"day": day}, ledger)
    async with budget.call(100, 50) as call:
        assert day.out == 300_000
        call.settle(used(100, 20, cached=40))
    assert day.out == sum(ledger.amounts) == budget.bill.nanos == 150_000
    assert not budget.bill.estimated


async def test_what_nobody_settles_is_spent_as_reserved_and_estimated() -> None:
    day = Watched(10**9)
    budget = Budget(9, PRICE, {"day": day})
    with pytest.raises(KeyError):
        async with budget.call(100, 50):
            raise KeyError
    assert day.out == budget.bill.nanos == 300_000
    assert budget.bill.estimated


async def test_what_was_refused_is_given_back_whole() -> None:
    day = Watched(10**9)
    budget = Budget(9, PRICE, {"day": day})
    async with budget.call(100, 50) as call:
        call.settle(Usage())
    assert (day.out, budget.bill.nanos, budget.bill.estimated) == (0, 0, False)


async def test_what_is_billed_beyond_the_reservation_is_taken_as_far_as_the_cap_goes() -> None:
    day = Watched(11_000)
    budget = Budget(9, PRICE, {"day": day})
    async with budget.call(1, 1) as call:
        call.settle(used(3, 1))
    assert day.out == budget.bill.nanos == 7_000
    async with budget.call(0, 1) as call:
        call.settle(used(0, 50))
    assert (day.out, budget.bill.nanos) == (11_000, 207_000)


async def test_money_that_one_cap_refuses_is_taken_from_none() -> None:
    wide, narrow, ledger = Watched(10**9), Watched(4_999), Kept()
    budget = Budget(1, PRICE, {"wide": wide, "narrow": narrow}, ledger)
    with pytest.raises(MoneyExceeded, match="narrow") as caught:
        async with budget.call(1, 1):
            pytest.fail("a call began that nobody can pay")
    assert (wide.out, narrow.out, ledger.caps) == (0, 0, ["narrow"])
    assert (caught.value.status, caught.value.code) == (402, "budget_exceeded")
    async with budget.call(4, 0):  # the refused attempt was no call
        pass


@pytest.mark.parametrize("left", [*range(1, 9), 31, 32, 33])
async def test_a_call_is_as_long_as_money_reaches(left: int) -> None:
    """32 tokens asked for behind 10; what is left over pays for no further one."""
    day, ledger = Watched(10_000 + left * 4_000 + 3_999), Kept()
    budget = Budget(9, PRICE, {"day": day, "request": RequestTotal(10**9)}, ledger)
    async with budget.call(10, 32) as call:
        assert call.tokens == min(left, 32)
        assert day.out == 10_000 + call.tokens * 4_000
        call.settle(used(10, call.tokens))
    assert (ledger.caps, day.takes <= 8) == ([], True)


async def test_where_nothing_is_left_it_is_two_asks_and_one_refusal() -> None:
    day, ledger = Watched(13_999), Kept()
    with pytest.raises(MoneyExceeded):
        await Budget(9, PRICE, {"day": day}, ledger).call(10, 32).__aenter__()
    assert (day.takes, day.out, ledger.caps) == (2, 0, ["day"])


async def test_cancelled_while_a_length_is_sought_nothing_stays_out() -> None:
    for steps in range(20):
        day = Watched(10_000 + 5 * 4_000)
        task = asyncio.create_task(Budget(9, PRICE, {"day": day}).call(10, 32).__aenter__())
        for _ in range(steps):
            await asyncio.sleep(0)
        done = task.done()
        task.cancel()
        with suppress(asyncio.CancelledError):
            await task
        assert day.out == (30_000 if done else 0)
    assert done


async def test_a_step_that_cannot_be_had_leaves_what_is_reserved() -> None:
    day = Watched(20_000)
    budget = Budget(9, PRICE, {"day": day})
    async with budget.call(4, 2) as call:
        await call.more(4)
        assert day.out == 20_000
        await call.more(3)
        with pytest.raises(MoneyExceeded):
            await call.more(5)
    assert day.out == 20_000


async def test_calls_are_counted_without_prices() -> None:
    budget = Budget(2)
    for _ in range(2):
        async with budget.call(10, 10) as call:
            call.settle(used(10, 10))
    with pytest.raises(BudgetExceeded, match="cap of 2 upstream calls") as caught:
        await budget.call(1, 1).__aenter__()
    assert (caught.value.status, budget.bill.nanos) == (429, None)


async def test_once_stopped_no_call_begins() -> None:
    day = Watched(10**9)
    budget = Budget(9, PRICE, {"day": day})
    async with budget.call(1, 1) as call:
        budget.stop()
        call.settle(used(1, 1))
    with pytest.raises(asyncio.CancelledError):
        await budget.call(1, 1).__aenter__()
    assert (day.takes, day.out) == (1, 5_000)


async def test_a_refusal_is_one_line_that_names_the_cap(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    budget = Budget(9, PRICE, {"limits.money_per_day": LocalTotal(1)})
    with pytest.raises(MoneyExceeded):
        await budget.call(1, 1).__aenter__()
    (line,) = caplog.records
    assert (line.levelname, "limits.money_per_day" in line.getMessage()) == ("INFO", True)


@pytest.mark.parametrize("requests", [60, 200])
async def test_never_a_call_beyond_the_cap_when_many_race(requests: int) -> None:
    """Each of them reserves 50 × 4000 + 1000 × 100 nano-units and turns out to need half."""
    reserved, settled = 300_000, 150_000
    day = Watched(20 * reserved + 7)
    served = refused = 0

    async def request(number: int) -> None:
        nonlocal served, refused
        try:
            async with Budget(9, PRICE, {"day": day}).call(100, 50) as call:
                assert day.out <= 20 * reserved + 7
                await asyncio.sleep(0.001 * (number % 5))
                call.settle(used(50, 25))
                served += 1
        except MoneyExceeded:
            refused += 1

    await asyncio.gather(*(request(i) for i in range(requests)))
    assert (served + refused, day.out) == (requests, served * settled)
    assert day.most <= 20 * reserved + 7
    assert served >= 20
    while (left := 20 * reserved + 7 - day.out) >= reserved:  # to the last nano-unit
        await request(0)
    assert refused > 0
    assert day.out + left == 20 * reserved + 7


async def test_a_cap_worth_50_calls_pays_for_50_of_200() -> None:
    day, made = LocalTotal(50 * 5_000), 0

    async def request() -> None:
        nonlocal made
        async with Budget(9, PRICE, {"day": day}).call(1, 1) as call:
            made += 1
            await asyncio.sleep(0.001)
            call.settle(used(1, 1))

    done = await asyncio.gather(*(request() for _ in range(200)), return_exceptions=True)
    assert made == 50
    assert sum(isinstance(error, MoneyExceeded) for error in done) == 150


async def test_cancelled_at_any_moment_nothing_is_lost() -> None:
    day = Watched(10**9)
    spent = 0

    async def request(budget: Budget) -> None:
        async with budget.call(1, 1) as call:
            await asyncio.sleep(0)
            await call.more(2)
            call.settle(used(1, 1))
            await asyncio.sleep(0)

    for steps in range(8):
        budget = Budget(9, PRICE, {"day": day, "request": RequestTotal(10**6)})
        task = asyncio.create_task(request(budget))
        for _ in range(steps):
            await asyncio.sleep(0)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        spent += budget.bill.nanos or 0
        assert day.out == spent
    assert spent > 0


calls = st.tuples(
    st.integers(0, 30),  # prompt
    st.lists(st.integers(0, 40), min_size=1, max_size=4),  # output tokens, step by step
    st.one_of(st.none(), st.tuples(st.integers(0, 30), st.integers(0, 50), st.integers(0, 40))),
    st.sampled_from([None, KeyError(), asyncio.CancelledError()]),
)


class Twin:
    """The same in plain arithmetic, one call after the other: what is out, billed and made.

    How much of the first step can be paid is found by trying every length.
    """

    def __init__(self, caps: tuple[int, int]) -> None:
        self.caps = caps
        self.out = [0, 0]
        self.bill = self.made = 0
        self.lengths: list[int] = []

    def pays(self, amount: int) -> bool:
        return all(out + amount <= cap for out, cap in zip(self.out, self.caps, strict=True))

    def call(self, prompt: int, steps: list[int], said: Usage | None) -> None:
        if self.made == 10:
            return
        reserved, begun = 0, False
        first = range(steps[0], min(0, steps[0] - 1), -1)
        longest = next((n for n in first if self.pays(PRICE.nanos(used(prompt, n)))), steps[0])
        for tokens in (longest, *steps[1:]):
            more = max(0, PRICE.nanos(used(prompt, tokens)) - reserved)
            if not self.pays(more):
                said = None
                break
            self.out = [out + more for out in self.out]
            reserved, begun = reserved + more, True
        self.made += begun
        self.lengths += [longest] * begun
        cost = reserved if said is None or not begun else PRICE.nanos(said)
        self.bill += cost
        for i, cap in enumerate(self.caps):
            if self.out[i] + cost - reserved <= cap:
                self.out[i] += cost - reserved


@thorough
@given(st.lists(calls, max_size=12), st.integers(0, 400_000), st.integers(0, 400_000))
async def test_totals_hold_what_was_settled(script: list, own: int, cap: int) -> None:
    request, day, ledger, twin = Watched(own), Watched(cap), Kept(), Twin((own, cap))
    budget = Budget(10, PRICE, {"request": request, "day": day}, ledger)
    lengths: list[int] = []
    for prompt, steps, counts, end in script:
        said = None if counts is None else used(*counts)
        twin.call(prompt, steps, said)
        with suppress(BudgetExceeded, KeyError, asyncio.CancelledError):
            async with budget.call(prompt, steps[0]) as call:
                lengths.append(call.tokens)
                for tokens in steps[1:]:
                    await call.more(tokens)
                if said is not None:
                    call.settle(said)
                if end is not None:
                    raise end
        assert [request.out, day.out] == twin.out
        assert budget.bill.nanos == twin.bill == sum(ledger.amounts)
        assert lengths == twin.lengths
    assert request.most <= own
    assert day.most <= cap
