"""Server-sent events as OpenAI's clients expect them, and the response that carries them."""

import asyncio
import json
from collections.abc import AsyncGenerator, Callable, Iterator, Mapping
from contextlib import aclosing
from typing import Any

from starlette.responses import StreamingResponse
from starlette.types import Receive, Scope, Send

from adapter.service.disconnect import ClientGone, unless_gone
from adapter.service.failures import failure
from adapter.service.parts import Part, Tally
from adapter.service.render import Dialect, Envelope, Json, View, usage

DONE = b"data: [DONE]\n\n"


def event(data: Mapping[str, Any]) -> bytes:
    """One event; ASCII only, because many clients take U+2028 and U+0085 for line ends."""
    return b"data: " + json.dumps(data, allow_nan=False, separators=(",", ":")).encode() + b"\n\n"


async def events(
    parts: AsyncGenerator[Part, None],
    envelope: Envelope,
    view: View,
    tally: Tally,
    include_usage: bool,
) -> AsyncGenerator[bytes, None]:
    """All events of an answer. A failure becomes the last event, and [DONE] is not sent."""
    kind = envelope.dialect.piece_object
    more: dict[str, Json | None] = {"usage": None} if include_usage else {}
    opened: set[int] = set()
    try:
        async with aclosing(parts):
            async for part in parts:
                tally.add(part)
                for choice in _choices(part, envelope.dialect, view, opened):
                    yield event(envelope.wrap(kind, [choice], **more))
    except Exception as error:  # noqa: BLE001 - after the first byte an event is the only way left
        yield event(failure(error, envelope.request_id).body)
        return
    if include_usage:
        yield event(envelope.wrap(kind, [], usage=usage(tally)))
    yield DONE


def _choices(part: Part, dialect: Dialect, view: View, opened: set[int]) -> Iterator[Json]:
    """What a part adds to the stream: at most the choice's opening and its own piece."""
    if dialect.opening is not None and part.index not in opened:
        opened.add(part.index)
        yield {
            "index": part.index,
            "delta": dialect.opening,
            "logprobs": None,
            "finish_reason": None,
        }
    if view.shows(part):
        yield dialect.piece(part, view)


class EventStream(StreamingResponse):
    """Sends events until they end or the client hangs up; then they are closed at once.

    Where the server stops and cancels what still runs, an error is the last event.
    Starlette's own response notices a hang-up in time only on servers of ASGI 2.3.
    """

    media_type = "text/event-stream"

    def __init__(
        self,
        chunks: AsyncGenerator[bytes, None],
        headers: Mapping[str, str],
        stop: Callable[[], None],
    ) -> None:
        fixed = {"cache-control": "no-cache", "x-accel-buffering": "no"}
        super().__init__(chunks, headers={**fixed, **headers})
        self._chunks = chunks
        self._stop = stop

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        async with aclosing(self._chunks):
            try:
                await unless_gone(receive, self.stream_response(send), self._stop)
            except ClientGone:
                return
            except asyncio.CancelledError as error:
                last = event(failure(error, scope["state"]["request_id"]).body)
                await send({"type": "http.response.body", "body": last, "more_body": False})
