"""Retries: bounded in number, spread in time, never before it was asked for."""

import email.utils
import time

import pytest

from adapter.errors import UpstreamUnavailable
from adapter.upstream.retries import ATTEMPTS, LONGEST_WAIT, Busy, Retries, asked_wait, retry_after
from tests.conftest import Measured


class Naps(list[float]):
    """A sleep that only takes note."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


class Failing:
    """Fails a number of times, then answers."""

    def __init__(self, error: Exception, times: int = 10**9) -> None:
        self.error = error
        self.times = times
        self.calls = 0

    async def __call__(self) -> str:
        self.calls += 1
        if self.calls <= self.times:
            raise self.error
        return "answer"


@pytest.mark.reliability("D3")
@pytest.mark.parametrize("requests", [1, 10, 3000])
async def test_of_lasting_failures_a_fifth_is_tried_again(requests: int) -> None:
    """60 s of 50 requests a second to an upstream that is down."""
    retries, attempt = Retries(Naps()), Failing(Busy("down"))
    before = 0
    for _ in range(requests):
        with pytest.raises(Busy):
            await retries(attempt, 30.0)
        assert attempt.calls - before <= ATTEMPTS
        before = attempt.calls
    assert attempt.calls <= 1.2 * requests + 3
    assert attempt.calls >= requests


async def test_calls_that_go_well_earn_three_retries_and_no_more() -> None:
    retries = Retries(Naps())
    for _ in range(100):
        await retries(Failing(Busy("x"), times=0), 30.0)
    attempts = [Failing(Busy("x")) for _ in range(5)]
    for attempt in attempts:
        with pytest.raises(Busy):
            await retries(attempt, 30.0)
    assert sum(attempt.calls for attempt in attempts) == 5 + 3


async def test_says_how_many_attempts_it_took() -> None:
    assert await Retries(Naps())(Failing(Busy("x"), times=2), 30.0) == ("answer", 3)


async def test_other_failures_are_not_tried_again() -> None:
    attempt = Failing(UpstreamUnavailable("open"))
    with pytest.raises(UpstreamUnavailable):
        await Retries(Naps())(attempt, 30.0)
    assert attempt.calls == 1


async def test_no_attempt_begins_past_the_deadline() -> None:
    attempt, naps = Failing(Busy("x", retry_after=7.0)), Naps()
    with pytest.raises(Busy):
        await Retries(naps)(attempt, 6.9)
    assert (attempt.calls, naps) == (1, [])


@pytest.mark.reliability("D5")
async def test_a_thousand_clients_that_met_one_429_come_back_spread_out(
    measured: Measured,
) -> None:
    bins = [0] * 200
    for _ in range(1000):
        naps = Naps()
        await Retries(naps)(Failing(Busy("429", retry_after=2.0, crowded=True), times=1), 30.0)
        assert naps[0] >= 2.0
        bins[int(naps[0] * 10)] += 1
    assert max(bins) <= 50
    assert sum(bins) == 1000
    measured("1,000 clients after one 429", f"{max(bins) / 10:.1f} % in the fullest 100 ms")


@pytest.mark.reliability("D4")
@pytest.mark.parametrize(
    ("headers", "seconds"),
    [
        ({}, 0),
        ({"retry-after": "0"}, 0),
        ({"retry-after": "1"}, 1),
        ({"retry-after": "119"}, 119),
        ({"retry-after": "120"}, 120),
        ({"retry-after": "121"}, 121),
        ({"retry-after": "-1"}, 0),
        ({"retry-after": "inf"}, float("inf")),
        ({"retry-after": "nan"}, 0),
        ({"retry-after": "soon"}, 0),
        ({"retry-after": ""}, 0),
        ({"retry-after-ms": "20"}, 0.02),
        ({"retry-after-ms": "1500", "retry-after": "9"}, 1.5),
        ({"retry-after-ms": "soon", "retry-after": "9"}, 9),
        ({"retry-after-ms": "-5"}, 0),
    ],
)
def test_what_an_answer_asks_for(headers: dict[str, str], seconds: float) -> None:
    assert asked_wait(headers) == seconds


@pytest.mark.reliability("D4")
def test_dates_count_from_now_and_the_past_asks_for_nothing() -> None:
    now = time.time()
    for ahead, least, most in ((119, 117, 119), (-60, 0, 0)):
        date = email.utils.formatdate(now + ahead, usegmt=True)
        assert least <= asked_wait({"retry-after": date}) <= most
    assert retry_after("Fri, 99 Nov 2026 10:00:00 GMT", now) == 0


@pytest.mark.reliability("D4")
def test_nothing_over_two_minutes_is_waited_for() -> None:
    assert LONGEST_WAIT <= 120
