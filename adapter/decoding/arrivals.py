"""Arrivals: pieces of a streamed draft that came while others were being verified, as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing, suppress

from adapter.candidates import Draft, Usage


async def together(pieces: AsyncGenerator[Draft, None]) -> AsyncGenerator[Draft, None]:
    """All that has arrived whenever it is asked for; closing it closes the stream at once."""
    arrived: asyncio.Queue[Draft | Exception | None] = asyncio.Queue()
    pump = asyncio.create_task(_pump(pieces, arrived))
    try:
        while True:
            batch = [await arrived.get()]
            while not arrived.empty():
                batch.append(arrived.get_nowait())
            drafts = [piece for piece in batch if isinstance(piece, Draft)]
            if drafts:
                yield _joined(drafts)
            if isinstance(batch[-1], Exception):
                raise batch[-1]
            if batch[-1] is None:
                return
    finally:
        pump.cancel()
        with suppress(asyncio.CancelledError):
            await pump


async def _pump(
    pieces: AsyncGenerator[Draft, None], arrived: asyncio.Queue[Draft | Exception | None]
) -> None:
    """Every piece, then what ended them: an error, or None."""
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                arrived.put_nowait(piece)
    except Exception as error:  # noqa: BLE001  # whoever reads the pieces raises it
        arrived.put_nowait(error)
    else:
        arrived.put_nowait(None)


def _joined(drafts: Sequence[Draft]) -> Draft:
    return Draft(
        positions=tuple(position for draft in drafts for position in draft.positions),
        finish_reason=drafts[-1].finish_reason,
        usage=sum((draft.usage for draft in drafts), Usage()),
        source=drafts[0].source,
    )
