"""A model server whose questions and answers are changed on the way: other servers' habits."""

import contextlib
import json
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from typing import Any

from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response
from starlette.routing import Route

from tests.support.model_server import ModelServer
from tests.support.sockets import serving

Json = dict[str, Any]


@dataclass
class Twist:
    """`asked` may change or answer a request; `told` may change the answer's one choice.

    `owner` is what the list of models says; `paths` are those asked for, in order.
    """

    server: ModelServer
    asked: Callable[[Json], Json | Response] = lambda body: body
    told: Callable[[Json, Json], None] = lambda body, choice: None
    owner: str = "somebody"
    chat: Callable[[Json], Response] | None = None
    address: str = ""
    paths: list[str] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    async def handle(self, request: Request) -> Response:
        self.paths.append(request.url.path)
        if request.url.path == "/v1/models":
            listed = {"id": self.server.name, "owned_by": self.owner}
            return JSONResponse({"data": [listed]})
        body = await request.json()
        if request.url.path == "/v1/chat/completions" and self.chat is not None:
            return self.chat(body)
        if request.url.path != "/v1/completions":
            return refused(404)
        changed = self.asked(body)
        return changed if isinstance(changed, Response) else self._told(changed)

    def _told(self, body: Json) -> Response:
        response = self.server.answer(body)
        if body.get("stream") or response.status_code != 200:
            return response
        answer = json.loads(response.body)
        self.told(body, answer["choices"][0])
        return JSONResponse(answer)


@contextlib.contextmanager
def twisted(server: ModelServer, **habits: Any) -> Iterator[Twist]:
    """Such a server on a free loopback port."""
    twist = Twist(server, **habits)
    app = Starlette(routes=[Route("/{path:path}", twist.handle, methods=["GET", "POST"])])
    with serving(app) as twist.address:
        yield twist


def refused(status: int, message: str = "no") -> Response:
    """An error in OpenAI's shape."""
    error = {"message": message, "type": "invalid_request_error", "param": None, "code": None}
    return JSONResponse({"error": error}, status)


def broken_off() -> Response:
    """An answer in which the connection ends."""
    return Response(b"{", headers={"content-length": "9"})
