"""Arrivals: pieces of a streamed draft that came while others were being verified, as one."""

import asyncio
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from adapter.candidates import Draft, Usage

End = Exception | asyncio.CancelledError | None
"""What ended the pieces: an error, a budget that was stopped, or nothing."""


async def together(pieces: AsyncGenerator[Draft, None]) -> AsyncGenerator[Draft, None]:
    """All that has arrived whenever it is asked for; closing it closes the stream at once."""
    arrived: asyncio.Queue[Draft | End] = asyncio.Queue()
    pump = asyncio.create_task(_pump(pieces, arrived))
    try:
        while True:
            batch = [await arrived.get()]
            while not arrived.empty():
                batch.append(arrived.get_nowait())
            drafts = [piece for piece in batch if isinstance(piece, Draft)]
            if drafts:
                yield _joined(drafts)
            if batch[-1] is None:
                return
            if not isinstance(batch[-1], Draft):
                raise batch[-1]
    finally:
        pump.cancel()
        await asyncio.wait({pump})  # not `await pump`: its end must not hide that we are cancelled


async def _pump(pieces: AsyncGenerator[Draft, None], arrived: asyncio.Queue[Draft | End]) -> None:
    """Every piece, then what ended them."""
    try:
        async with aclosing(pieces):
            async for piece in pieces:
                arrived.put_nowait(piece)
    except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001  # the reader raises it
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
