"""Waiting for what comes by itself."""

import asyncio
from collections.abc import Awaitable, Callable


async def until(holds: Callable[[], Awaitable[bool]]) -> None:
    """Ask every 10 ms; fails after half a minute."""
    async with asyncio.timeout(30):
        while not await holds():  # noqa: ASYNC110 - servers set no events
            await asyncio.sleep(0.01)
