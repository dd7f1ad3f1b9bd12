"""Reads again, strictly, what the service under test writes."""

import json
from collections.abc import Iterator
from typing import Any

from starlette.types import ASGIApp, Message, Receive, Scope, Send


def strict_json(text: str | bytes) -> Any:
    """JSON as its standard has it. Raises ValueError, as for NaN and numbers beyond a double."""

    def refuse(name: str) -> Any:
        raise ValueError(f"{name} is no JSON")

    def finite(digits: str) -> float:
        number = float(digits)
        if number in (float("inf"), float("-inf")):
            raise ValueError(f"{digits} is beyond a double")
        return number

    return json.loads(text, parse_constant=refuse, parse_float=finite)


class Strict:
    """ASGI: every whole answer of the app behind it is read; `wrong` are those that cannot be."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app
        self.read = 0
        self.wrong: list[str] = []

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        kind, body = "", bytearray()

        async def seen(message: Message) -> None:
            nonlocal kind
            if message["type"] == "http.response.start":
                kind = dict(message["headers"]).get(b"content-type", b"").decode()
            elif message["type"] == "http.response.body":
                body.extend(message.get("body", b""))
                if not message.get("more_body"):
                    self._reread(kind, bytes(body))
            await send(message)

        await self._app(scope, receive, seen)

    def _reread(self, kind: str, body: bytes) -> None:
        for text in _documents(kind, body):
            self.read += 1
            try:
                strict_json(text)
            except ValueError as error:
                self.wrong.append(f"{error}: {text[:200]!r}")


def _documents(kind: str, body: bytes) -> Iterator[bytes]:
    if "json" in kind:
        yield body
    elif "event-stream" in kind:
        lines = body.split(b"\n")
        yield from (line[6:] for line in lines if line.startswith(b"data: {"))
