"""The race against a client that hangs up."""

import asyncio
from collections.abc import Callable, Coroutine
from typing import Any, TypeVar

from starlette.types import Receive

T = TypeVar("T")


class ClientGone(Exception):
    """The client hung up; nobody is left to answer."""


async def unless_gone(
    receive: Receive, work: Coroutine[Any, Any, T], stop: Callable[[], None]
) -> T:
    """The result of `work`, which is cancelled as soon as the client hangs up, after `stop()`.

    Cancelling reaches the tasks that work has begun a few turns of the loop later; `stop` is to
    keep them from beginning anything that costs.

    The request's body must have been read. Raises ClientGone. Servers do not cancel a handler by
    themselves, so without this race every upstream call of a lost request would still be paid.
    """
    task = asyncio.create_task(work)
    gone = asyncio.create_task(_hang_up(receive, task, stop))
    try:
        await asyncio.wait({task, gone}, return_when=asyncio.FIRST_COMPLETED)
        if gone.done() and not gone.cancelled() and gone.result():
            raise ClientGone
        return await task
    finally:
        if not task.cancelling():  # a second time would break off what the first has it clean up
            task.cancel()
        gone.cancel()
        await asyncio.gather(task, gone, return_exceptions=True)


async def _hang_up(receive: Receive, task: asyncio.Task[Any], stop: Callable[[], None]) -> bool:
    """Cancels a task in the very step in which the client leaves; False where it was done."""
    while (await receive())["type"] != "http.disconnect":
        pass
    stop()
    return task.cancel()
