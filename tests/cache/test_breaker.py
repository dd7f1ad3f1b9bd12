"""The breaker: when calls are made, when probes, what is logged."""

import logging

import pytest

from cache.breaker import Breaker
from tests.support.clock import Clock

Log = pytest.LogCaptureFixture


@pytest.fixture
def clock() -> Clock:
    return Clock()


@pytest.fixture
def breaker(clock: Clock) -> Breaker:
    return Breaker("it", clock=clock)


@pytest.fixture
def log(caplog: Log) -> Log:
    caplog.set_level(logging.INFO)
    return caplog


def fail_probes(breaker: Breaker, clock: Clock, count: int) -> list[float]:
    """Fail so many probes, each as soon as one is due; gives the waits before them in seconds."""
    waits = []
    for _ in range(count):
        begun = clock.now
        while not breaker.probe():
            clock.now += 0.01
        waits.append(clock.now - begun)
        breaker.probed("again")
    return waits


def test_one_failure_opens_it_and_those_under_way_count_once(
    breaker: Breaker, clock: Clock
) -> None:
    assert breaker.closed
    for _ in range(50):
        breaker.failed("timeout")
    assert not breaker.closed
    clock.now = 0.1
    assert breaker.probe()  # not 50 doublings later


def test_only_one_probes_at_a_time(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("timeout")
    assert not breaker.probe()
    clock.now = 0.1
    assert [breaker.probe() for _ in range(3)] == [True, False, False]
    breaker.probed("timeout")
    assert not breaker.probe()
    clock.now = 0.31
    assert breaker.probe()
    breaker.probed(None)
    assert breaker.closed
    assert not breaker.probe()


def test_waits_double_up_to_five_seconds(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("timeout")
    waits = fail_probes(breaker, clock, 9)
    assert waits == pytest.approx([0.1, 0.2, 0.4, 0.8, 1.6, 3.2, 5, 5, 5], abs=0.011)


def test_an_outage_is_two_lines(breaker: Breaker, clock: Clock, log: Log) -> None:
    for _ in range(2):
        breaker.failed("timeout")
        fail_probes(breaker, clock, 200)
        clock.now += 5
        assert breaker.probe()
        breaker.probed(None)
        for _ in range(300):
            breaker.succeeded()
            clock.now += 0.01
    down, back = "it fails (again) and is left alone until it is back", "it answers again"
    assert log.messages == [down, back] * 2


def test_a_hiccup_is_no_line(breaker: Breaker, clock: Clock, log: Log) -> None:
    for _ in range(20):
        breaker.failed("timeout")
        clock.now += 0.11
        assert breaker.probe()
        breaker.probed(None)
        clock.now += 1.01
        breaker.succeeded()
    assert log.messages == []


def test_what_answers_only_probes_is_left_alone_ever_longer(
    breaker: Breaker, clock: Clock, log: Log
) -> None:
    calls = 0
    while clock.now < 600:
        if breaker.closed:
            calls += 1
            breaker.succeeded()
            breaker.failed("cut")
        elif breaker.probe():
            breaker.probed(None)
        clock.now += 0.01
    assert calls <= 600 / 5 + 8
    assert len(log.messages) == 1


def test_success_under_way_does_not_close_it(breaker: Breaker, clock: Clock) -> None:
    breaker.failed("timeout")
    clock.now = 10
    breaker.succeeded()
    assert not breaker.closed
