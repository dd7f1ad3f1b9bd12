"""Pieces that arrive beside their reader: none lost, and no cancellation swallowed."""

import asyncio
from collections.abc import AsyncGenerator
from contextlib import aclosing

import pytest

from adapter.candidates import Candidate, Draft, Position, Usage, make_position
from adapter.decoding.arrivals import together


def piece(count: int, finish: str | None = None) -> Draft:
    return Draft((position(),) * count, finish, Usage(completion_tokens=count))


def position() -> Position:
    return make_position([Candidate(b"a", -0.1, 0)], None)


async def test_what_came_meanwhile_is_one_piece() -> None:
    async def pieces() -> AsyncGenerator[Draft, None]:
        yield piece(1)
        yield piece(2)
        await asyncio.sleep(0.01)
        yield piece(1, "stop")

    found = [one async for one in together(pieces())]
    assert [len(one.positions) for one in found] == [3, 1]
    assert [one.finish_reason for one in found] == [None, "stop"]
    assert sum((one.usage for one in found), Usage()).completion_tokens == 4


@pytest.mark.parametrize("error", [ValueError("no"), asyncio.CancelledError("stopped")])
async def test_what_ends_the_pieces_ends_their_reader(error: BaseException) -> None:
    async def pieces() -> AsyncGenerator[Draft, None]:
        yield piece(1)
        raise error

    async with aclosing(together(pieces())) as found, asyncio.timeout(10):
        assert len((await anext(found)).positions) == 1
        with pytest.raises(type(error)):
            await anext(found)


async def test_cancelled_while_it_closes_its_reader_ends() -> None:
    """A client may hang up while a stream that is done with is being closed."""
    closing, end, closed = asyncio.Event(), asyncio.Event(), asyncio.Event()

    async def pieces() -> AsyncGenerator[Draft, None]:
        try:
            yield piece(1)
            await asyncio.Event().wait()
        finally:
            closing.set()
            await end.wait()
            closed.set()

    went_on = False

    async def reader() -> None:
        nonlocal went_on
        async with aclosing(together(pieces())) as found:
            await anext(found)
        went_on = True

    task = asyncio.create_task(reader())
    await closing.wait()
    task.cancel()
    await asyncio.wait({task}, timeout=0.1)
    end.set()
    with pytest.raises(asyncio.CancelledError):
        await task
    assert not went_on
    await asyncio.wait_for(closed.wait(), 10)
