"""Single flight: those who ask for the same thing at the same time share one fetch."""

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass
from typing import Generic, TypeVar

T = TypeVar("T")


@dataclass
class _Fetch(Generic[T]):
    task: asyncio.Task[T]
    waiting: int = 0


class Flight(Generic[T]):
    """One fetch per key at a time, within one event loop.

    The fetch is a task of its own: it outlives a cancelled asker as long as another one waits,
    and is cancelled with the last of them.
    """

    def __init__(self) -> None:
        self._fetches: dict[bytes, _Fetch[T]] = {}

    async def share(self, key: bytes, fetch: Callable[[], Awaitable[T]]) -> T:
        """What `fetch` gives, or the fetch under way for this key; raises what that one raises."""
        while True:
            shared = self._fetches.get(key)
            mine = shared is None
            if shared is None:
                shared = _Fetch(asyncio.create_task(self._run(key, fetch)))
                self._fetches[key] = shared
            await self._wait(key, shared)
            if mine or not shared.task.cancelled():
                return shared.task.result()
            # Somebody else's fetch was cancelled from within; that is not this asker's end.

    async def _run(self, key: bytes, fetch: Callable[[], Awaitable[T]]) -> T:
        try:
            return await fetch()
        finally:
            # In the task's own last step: nobody can join a fetch that has already failed.
            self._forget(key, asyncio.current_task())

    async def _wait(self, key: bytes, shared: _Fetch[T]) -> None:
        shared.waiting += 1
        try:
            await asyncio.wait({shared.task})
        finally:
            shared.waiting -= 1
            if not shared.waiting:
                if not shared.task.done():
                    self._forget(key, shared.task)
                    shared.task.cancel()
                    await asyncio.wait({shared.task})
                _ = shared.task.cancelled() or shared.task.exception()  # seen by nobody else

    def _forget(self, key: bytes, task: "asyncio.Task[T] | None") -> None:
        shared = self._fetches.get(key)
        if shared is not None and shared.task is task:
            del self._fetches[key]
