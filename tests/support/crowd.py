"""Many who ask at once."""

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any


async def crowd(ask: Callable[[Any], Awaitable[Any]], asked: Iterable[Any]) -> list[Any]:
    """What each was answered, in order; 16 wait for theirs at any time."""
    gate = asyncio.Semaphore(16)

    async def one(question: Any) -> Any:
        async with gate:
            return await ask(question)

    return await asyncio.gather(*map(one, asked))
