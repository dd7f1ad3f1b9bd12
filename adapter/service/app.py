"""The routes: OpenAI's paths in front of an Adapter."""

import asyncio
import time
import uuid
from collections.abc import AsyncGenerator, AsyncIterator, Callable, Sequence
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from fastapi import FastAPI, Request, Response
from fastapi.responses import JSONResponse
from starlette.datastructures import MutableHeaders
from starlette.exceptions import HTTPException
from starlette.requests import ClientDisconnect
from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter import stages
from adapter.budget import Budget
from adapter.errors import AdapterError, ModelNotFound
from adapter.service.disconnect import ClientGone, unless_gone
from adapter.service.failures import failure
from adapter.service.observed import Observed
from adapter.service.parts import Part, Tally, generate, joined
from adapter.service.playground import playground
from adapter.service.render import CHAT, COMPLETIONS, Dialect, Envelope, Json, View, usage
from adapter.service.stream import EventStream, events
from adapter.service.wire import Asked, cache_use, read_chat, read_completion
from adapter.settings import LimitSettings, Settings
from adapter.upstream.lookups import Lookups, outcome

if TYPE_CHECKING:  # the engine brings torch along, and the wire does not need it
    from adapter.adapter import Adapter

MAX_BODY = 2**20
"""Bytes of a request body."""

CLIENT_GONE = 499

Read = Callable[[bytes, LimitSettings], Asked]


def create_app(adapter: "Adapter", settings: Settings) -> FastAPI:
    """The service around an adapter, which is closed when the service stops."""

    @asynccontextmanager
    async def lifespan(_: FastAPI) -> AsyncIterator[None]:
        yield
        await adapter.close()

    app = FastAPI(
        lifespan=lifespan, docs_url=None, redoc_url=None, openapi_url=None, redirect_slashes=False
    )
    app.add_middleware(Observed, metrics=adapter.metrics, models=adapter.models)
    app.add_middleware(RequestId)
    app.add_exception_handler(AdapterError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    generation = GenerationRoutes(adapter, settings.limits)
    models = ModelRoutes(adapter.models, int(time.time()))
    app.add_api_route("/v1/completions", generation.completions, methods=["POST"])
    app.add_api_route("/v1/chat/completions", generation.chat, methods=["POST"])
    app.add_api_route("/v1/models", models.every, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", models.one, methods=["GET"])
    app.add_api_route("/healthz", _healthy, methods=["GET"])
    app.add_api_route("/readyz", _ready, methods=["GET"])
    app.add_api_route("/", playground, methods=["GET"])
    return app


@dataclass(frozen=True, slots=True)
class GenerationRoutes:
    """The two endpoints that generate; they differ in what they read and in how they write."""

    adapter: "Adapter"
    limits: LimitSettings

    async def completions(self, request: Request) -> Response:
        return await self._answer(request, read_completion, COMPLETIONS)

    async def chat(self, request: Request) -> Response:
        return await self._answer(request, read_chat, CHAT)

    async def _answer(self, request: Request, read: Read, dialect: Dialect) -> Response:
        try:
            control = ",".join(request.headers.getlist("cache-control"))
            asked = read(await _body(request), self.limits).using(cache_use(control))
            budget = self.adapter.budget(asked.model, len(asked.requests))
            work = self._generate(asked, budget, dialect, request.state.request_id)
            request.state.model = asked.model
            return await unless_gone(request.receive, work, budget.stop)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        except Exception as error:  # noqa: BLE001 - the edge: everything becomes an answer
            return _refused(request, error)

    async def _generate(
        self, asked: Asked, budget: Budget, dialect: Dialect, request_id: str
    ) -> Response:
        """The whole answer, or a stream whose first part is there, so that it is sound so far."""
        jobs = [await asyncio.to_thread(self.adapter.prepare, r, budget) for r in asked.requests]
        view = View(asked.logprobs, asked.trace, jobs[0].alpha)
        envelope = Envelope(dialect, request_id, int(time.time()), asked.model)
        lookups = tuple(job.lookups for job in jobs)
        tally = Tally(sum(job.prompt_tokens for job in jobs), budget.bill)
        parts = generate(self.adapter, jobs)
        if asked.stream:
            first = await anext(parts)
            chunks = events(_chain(first, parts), envelope, view, tally, asked.include_usage)
            return EventStream(chunks, _headers(view, lookups), budget.stop)
        async with aclosing(parts):
            collected = [part async for part in parts]
        for part in collected:
            tally.add(part)
        choices = [dialect.whole(part, view) for part in joined(collected)]
        answer = envelope.wrap(dialect.whole_object, choices, usage=usage(tally))
        return JSONResponse(answer, headers=_headers(view, lookups))


@dataclass(frozen=True, slots=True)
class ModelRoutes:
    """What can be asked for; `created` is when the service started, in Unix time."""

    names: tuple[str, ...]
    created: int

    async def every(self) -> Response:
        return JSONResponse({"object": "list", "data": [self._model(n) for n in self.names]})

    async def one(self, name: str) -> Response:
        if name not in self.names:
            raise ModelNotFound("there is no model of that name here", param="model")
        return JSONResponse(self._model(name))

    def _model(self, name: str) -> Json:
        return {"id": name, "object": "model", "created": self.created, "owned_by": "adapter"}


class RequestId:
    """Pure ASGI: gives every request an id, in `request.state` and the header x-request-id."""

    def __init__(self, app: ASGIApp) -> None:
        self._app = app

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        request_id = uuid.uuid4().hex
        scope.setdefault("state", {})["request_id"] = request_id
        stages.request_id.set(request_id)

        async def named(message: Message) -> None:
            if message["type"] == "http.response.start":
                MutableHeaders(scope=message)["x-request-id"] = request_id
            await send(message)

        await self._app(scope, receive, named)


async def _chain(first: Part, rest: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part


async def _body(request: Request) -> bytes:
    """The body, up to MAX_BODY. Raises HTTPException for another size or content type.

    Only application/json is read: a web page can send other types to a loopback service unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the content-type must be application/json")
    body = bytearray()
    async for chunk in request.stream():
        body += chunk
        if len(body) > MAX_BODY:
            raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    return bytes(body)


def _headers(view: View, lookups: Sequence[Lookups]) -> dict[str, str]:
    """A stream's x-cache speaks of what its first token took; the trace tells of each."""
    return {"x-steering": "off" if view.alpha == 0.0 else "on", "x-cache": outcome(lookups)}


def _refused(request: Request, error: Exception) -> Response:
    told = failure(error, request.state.request_id)
    return JSONResponse(told.body, told.status, headers=told.headers)


async def _healthy() -> dict[str, Any]:
    """The process lives."""
    return {"status": "ok"}


async def _ready() -> dict[str, Any]:
    """The models are loaded, or nobody would listen; a cache that is away keeps nobody waiting."""
    return {"status": "ready"}
