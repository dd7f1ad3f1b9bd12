"""Single flight: one fetch for all who ask at once, whoever of them leaves."""

import asyncio
import gc
import random

import pytest

from cache import Flight


class Fetch:
    """Counts its calls and ends when told to."""

    def __init__(self) -> None:
        self.started = 0
        self.cancelled = 0
        self.answer: asyncio.Future[bytes] = asyncio.get_running_loop().create_future()

    async def __call__(self) -> bytes:
        self.started += 1
        try:
            return await asyncio.shield(self.answer)
        except asyncio.CancelledError:
            self.cancelled += 1
            raise


async def settle() -> None:
    """Let everything run that can."""
    for _ in range(10):
        await asyncio.sleep(0)


async def test_askers_of_one_key_share_one_fetch() -> None:
    flight: Flight[bytes] = Flight()
    fetch = Fetch()
    asked = [asyncio.create_task(flight.share(b"k", fetch)) for _ in range(50)]
    await settle()
    fetch.answer.set_result(b"v")
    assert await asyncio.gather(*asked) == [b"v"] * 50
    assert fetch.started == 1


async def test_keys_do_not_wait_for_each_other_and_nothing_is_remembered() -> None:
    flight: Flight[bytes] = Flight()
    one, two, again = Fetch(), Fetch(), Fetch()
    slow = asyncio.create_task(flight.share(b"1", one))
    two.answer.set_result(b"two")
    assert await flight.share(b"2", two) == b"two"
    one.answer.set_result(b"one")
    assert await slow == b"one"
    again.answer.set_result(b"new")
    assert await flight.share(b"1", again) == b"new"


@pytest.mark.reliability("E4")
async def test_a_cancelled_leader_leaves_its_fetch_to_the_others() -> None:
    for seed in range(1000):
        flight: Flight[bytes] = Flight()
        fetch = Fetch()
        asked = [asyncio.create_task(flight.share(b"k", fetch)) for _ in range(4)]
        for _ in range(random.Random(seed).randrange(1, 6)):
            await asyncio.sleep(0)
        asked[0].cancel()
        await settle()
        fetch.answer.set_result(b"v")
        assert await asyncio.gather(*asked[1:]) == [b"v"] * 3
        assert (fetch.started, fetch.cancelled) == (1, 0)
        assert asked[0].cancelled()


async def test_the_last_to_leave_ends_the_fetch() -> None:
    flight: Flight[bytes] = Flight()
    fetch, later = Fetch(), Fetch()
    asked = [asyncio.create_task(flight.share(b"k", fetch)) for _ in range(3)]
    await settle()
    for task in asked:
        assert fetch.cancelled == 0
        task.cancel()
    await asyncio.gather(*asked, return_exceptions=True)
    assert (fetch.started, fetch.cancelled) == (1, 1)
    assert asyncio.all_tasks() == {asyncio.current_task()}
    later.answer.set_result(b"v")
    assert await flight.share(b"k", later) == b"v"


async def test_who_asks_while_a_left_fetch_still_ends_gets_one_of_its_own() -> None:
    flight: Flight[bytes] = Flight()
    leaving = asyncio.Event()

    async def stubborn() -> bytes:
        try:
            return await asyncio.Future()
        finally:
            await leaving.wait()

    left = asyncio.create_task(flight.share(b"k", stubborn))
    await settle()
    left.cancel()
    await settle()
    fetch = Fetch()
    fetch.answer.set_result(b"v")
    assert await flight.share(b"k", fetch) == b"v"
    assert not left.done()
    leaving.set()
    await asyncio.wait({left})
    assert left.cancelled()


async def test_an_error_is_shared_with_those_who_waited() -> None:
    flight: Flight[bytes] = Flight()
    fetch, later = Fetch(), Fetch()
    asked = [asyncio.create_task(flight.share(b"k", fetch)) for _ in range(3)]
    await settle()
    fetch.answer.set_exception(ValueError("upstream"))
    errors = await asyncio.gather(*asked, return_exceptions=True)
    assert [str(error) for error in errors] == ["upstream"] * 3
    later.answer.set_result(b"v")
    assert await flight.share(b"k", later) == b"v"


async def test_who_asks_in_the_moment_after_a_failure_gets_a_fetch_of_its_own() -> None:
    flight: Flight[bytes] = Flight()
    later = Fetch()
    later.answer.set_result(b"v")
    asked: list[asyncio.Task[bytes]] = []

    async def fail() -> bytes:
        asked.append(asyncio.create_task(flight.share(b"k", later)))  # runs right after this
        raise ValueError("upstream")

    with pytest.raises(ValueError, match="upstream"):
        await flight.share(b"k", fail)
    assert await asked[0] == b"v"


async def test_a_fetch_that_cancels_itself_is_nobody_elses_end() -> None:
    flight: Flight[bytes] = Flight()
    calls: list[int] = []

    async def fetch() -> bytes:
        calls.append(len(calls))
        await asyncio.sleep(0)
        if len(calls) == 1:
            raise asyncio.CancelledError
        return b"v"

    asked = [asyncio.create_task(flight.share(b"k", fetch)) for _ in range(3)]
    results = await asyncio.gather(*asked, return_exceptions=True)
    assert isinstance(results[0], asyncio.CancelledError)
    assert (results[1:], len(calls)) == ([b"v", b"v"], 2)


async def test_an_error_after_everyone_left_is_nobodys(caplog: pytest.LogCaptureFixture) -> None:
    flight: Flight[bytes] = Flight()

    async def fetch() -> bytes:
        try:
            return await asyncio.Future()
        except asyncio.CancelledError:
            raise ValueError("too late") from None

    asked = asyncio.create_task(flight.share(b"k", fetch))
    await settle()
    asked.cancel()
    await asyncio.wait({asked})
    assert asked.cancelled()
    del asked, flight
    gc.collect()
    assert caplog.records == []


async def test_a_fetch_that_fails_as_its_last_asker_leaves_is_no_news() -> None:
    """At any distance between the two, nobody is told of an error that was not retrieved."""
    told: list[dict[str, object]] = []
    asyncio.get_running_loop().set_exception_handler(lambda _, context: told.append(context))
    for steps in range(6):
        flight: Flight[bytes] = Flight()
        fetch = Fetch()
        asker = asyncio.create_task(flight.share(b"k", fetch))
        await settle()
        fetch.answer.set_exception(RuntimeError("lost"))
        for _ in range(steps):
            await asyncio.sleep(0)
        asker.cancel()
        with pytest.raises((RuntimeError, asyncio.CancelledError)):
            await asker
        del flight, fetch, asker
        gc.collect()
    await settle()
    assert told == []
