"""The routes: OpenAI's paths in front of an Adapter."""

import asyncio
import time
import uuid
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
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
from adapter.service.answering import Answering, begin, unblocking
from adapter.service.auth import Auth
from adapter.service.disconnect import ClientGone, unless_gone
from adapter.service.failures import failure
from adapter.service.limits import Limits
from adapter.service.observed import Observed
from adapter.service.playground import playground
from adapter.service.render import CHAT, COMPLETIONS, Dialect, Json
from adapter.service.stream import EventStream
from adapter.service.tokenizer import Tokenizer
from adapter.service.wire import Asked, cache_use, read_chat, read_completion
from adapter.settings import KeySettings, LimitSettings, Settings
from adapter.upstream.lookups import outcome

if TYPE_CHECKING:  # the engine brings torch along, and the wire does not need it
    from adapter.adapter import Adapter

MAX_BODY = 2**20
"""Bytes of a request body."""

BODY_SECONDS = 30.0
"""What a client has to send its body: it holds a place all the while."""

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
    most, refused = settings.service.max_concurrency, adapter.metrics.refused
    # From the inside out: each one needs what those around it have found.
    app.add_middleware(Limits, max_concurrency=most, refused=refused)
    app.add_middleware(Auth, keys=settings.keys, refused=refused)
    app.add_middleware(Observed, metrics=adapter.metrics, models=adapter.models)
    app.add_middleware(RequestId)
    app.add_exception_handler(AdapterError, _refused)
    app.add_exception_handler(HTTPException, _refused)
    generation = GenerationRoutes(adapter, settings.limits)
    models = ModelRoutes(adapter.models, int(time.time()))
    app.add_route("/v1/completions", generation.completions, methods=["POST"])
    app.add_route("/v1/chat/completions", generation.chat, methods=["POST"])
    app.add_api_route("/v1/models", models.every, methods=["GET"])
    app.add_api_route("/v1/models/{name:path}", models.one, methods=["GET"])
    tokenizers = TokenizerRoutes(Tokenizer(adapter))
    app.add_api_route("/tokenize", tokenizers.tokenize, methods=["POST"])
    app.add_api_route("/detokenize", tokenizers.detokenize, methods=["POST"])
    app.add_api_route("/tokenizer_info", tokenizers.info, methods=["GET"])
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
            key: KeySettings | None = request.state.key
            tenant = None if key is None else key.tenant
            body = await _body(request)
            asked = await unblocking(len(body), read, body, self.limits)
            asked = asked.using(cache_use(control), tenant)
            budget = self.adapter.budget(asked.model, len(asked.requests), key)
            work = self._generate(asked, budget, dialect, request.state.request_id)
            request.state.model = asked.model
            return await unless_gone(request.receive, work, budget.stop)
        except (ClientGone, ClientDisconnect):
            return Response(status_code=CLIENT_GONE)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - an answer to all
            return _refused(request, error)

    async def _generate(
        self, asked: Asked, budget: Budget, dialect: Dialect, request_id: str
    ) -> Response:
        answering = await begin(self.adapter, asked, budget, dialect, request_id)
        if asked.stream:
            chunks = await answering.events(asked.include_usage)
            return EventStream(chunks, _headers(answering), budget.stop)
        answer = await answering.whole()
        return JSONResponse(answer, headers=_headers(answering))


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


@dataclass(frozen=True, slots=True)
class TokenizerRoutes:
    """What lm-evaluation-harness asks a server with a tokenizer of its own."""

    tokenizer: Tokenizer

    async def tokenize(self, request: Request) -> Response:
        return await self._answer(request, self.tokenizer.tokenize)

    async def detokenize(self, request: Request) -> Response:
        return await self._answer(request, self.tokenizer.detokenize)

    async def info(self, model: str | None = None) -> Response:
        return JSONResponse(self.tokenizer.info(model))

    async def _answer(self, request: Request, answer: Callable[[bytes], Json]) -> Response:
        try:
            return JSONResponse(await asyncio.to_thread(answer, await _body(request)))
        except ClientDisconnect:
            return Response(status_code=CLIENT_GONE)
        except (Exception, asyncio.CancelledError) as error:  # noqa: BLE001 - as for generation
            return _refused(request, error)


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


async def _body(request: Request) -> bytes:
    """The body, up to MAX_BODY. Raises HTTPException for another size, type, or a slow one.

    Only application/json is read: a web page can send other types to a loopback service unasked.
    """
    kind = request.headers.get("content-type", "").partition(";")[0].strip().lower()
    if kind != "application/json":
        raise HTTPException(415, "the content-type must be application/json")
    body = bytearray()
    try:
        async with asyncio.timeout(BODY_SECONDS):
            async for chunk in request.stream():
                body += chunk
                if len(body) > MAX_BODY:
                    raise HTTPException(413, f"the body is larger than {MAX_BODY} bytes")
    except TimeoutError:
        raise HTTPException(408, f"the body did not come in {BODY_SECONDS:g} seconds") from None
    return bytes(body)


def _headers(answering: Answering) -> dict[str, str]:
    """A stream's x-cache speaks of what its first token took; the trace tells of each."""
    steering = "off" if answering.view.alpha == 0.0 else "on"
    return {"x-steering": steering, "x-cache": outcome(answering.lookups)}


def _refused(request: Request, error: Exception | asyncio.CancelledError) -> Response:
    told = failure(error, request.state.request_id)
    return JSONResponse(told.body, told.status, headers=told.headers)


async def _healthy() -> dict[str, Any]:
    """The process lives."""
    return {"status": "ok"}


async def _ready() -> dict[str, Any]:
    """The models are loaded, or nobody would listen; a cache that is away keeps nobody waiting."""
    return {"status": "ready"}
