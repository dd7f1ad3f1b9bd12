"""The upstream's breaker: when it opens, who probes, and what closes it."""

import asyncio
import logging
from contextlib import suppress

import pytest

from adapter.errors import (
    BudgetExceeded,
    ContextTooLong,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.upstream.breaker import Breaker
from tests.support.clock import Clock


def call(breaker: Breaker, error: BaseException | None = None) -> bool:
    """Whether a call that ends so was made at all."""
    made = False
    with suppress(BaseException), breaker.watch():
        made = True
        if error is not None:
            raise error
    return made


def opened(clock: Clock) -> Breaker:
    breaker = Breaker("it", clock=clock)
    for _ in range(5):
        assert call(breaker, UpstreamTimeout("late"))
    return breaker


def test_opens_after_five_failures_in_a_row() -> None:
    breaker = opened(Clock())
    with pytest.raises(UpstreamUnavailable, match="left alone") as caught, breaker.watch():
        pytest.fail("it is open")
    assert caught.value.retry_after == 1.0


@pytest.mark.parametrize(
    "answer",
    [None, UpstreamRefused("4xx"), ContextTooLong("4xx"), UpstreamMalformed("?"), GeneratorExit()],
)
def test_whatever_answers_is_well(answer: BaseException | None) -> None:
    breaker = Breaker("it", clock=Clock())
    for _ in range(10):
        assert all(call(breaker, UpstreamUnavailable("x")) for _ in range(4))
        assert call(breaker, answer)


@pytest.mark.parametrize("end", [asyncio.CancelledError(), BudgetExceeded("over")])
def test_what_is_not_its_doing_counts_for_nothing(end: BaseException) -> None:
    breaker = Breaker("it", clock=Clock())
    for _ in range(4):
        call(breaker, UpstreamUnavailable("x"))
    for _ in range(9):
        assert call(breaker, end)
    call(breaker, UpstreamUnavailable("x"))
    assert not call(breaker)


@pytest.mark.reliability("D9")
def test_one_probe_a_second_and_one_at_a_time() -> None:
    clock = Clock()
    breaker = opened(clock)
    probes = 0
    for _ in range(300):
        clock.now += 0.1
        probes += call(breaker, UpstreamTimeout("late"))
    assert 25 <= probes <= 30
    clock.now += 1.0
    with breaker.watch():
        clock.now += 60.0
        assert not call(breaker)
    assert call(breaker)


def test_a_probe_that_was_cancelled_is_made_again_a_second_later() -> None:
    clock = Clock()
    breaker = opened(clock)
    clock.now += 1.0
    assert call(breaker, asyncio.CancelledError())
    assert not call(breaker)
    clock.now += 1.0
    assert call(breaker)
    assert call(breaker)


def test_calls_under_way_when_it_opened_do_not_free_the_probe() -> None:
    clock = Clock()
    breaker = Breaker("it", clock=clock)
    with breaker.watch():
        for _ in range(5):
            call(breaker, UpstreamTimeout("late"))
        clock.now += 1.0
        probe = breaker.watch()
        probe.__enter__()
    assert call(breaker)  # the late answer shows that it is well
    probe.__exit__(None, None, None)


def test_two_lines_for_an_outage(caplog: pytest.LogCaptureFixture) -> None:
    caplog.set_level(logging.DEBUG)
    clock = Clock()
    breaker = opened(clock)
    for _ in range(50):
        clock.now += 0.5
        call(breaker, UpstreamTimeout("late"))
    clock.now += 1.0
    call(breaker)
    call(breaker)
    assert [record.levelname for record in caplog.records] == ["WARNING", "INFO"]
