"""Every request for tokens, counted, timed and spanned from its first byte to its last."""

import time
from collections.abc import Iterable, MutableMapping
from typing import Any, Literal

from starlette.types import ASGIApp, Message, Receive, Scope, Send

from adapter.metrics import Metrics
from adapter.stages import Stage, billed, current, failed, observe, span

Outcome = Literal["ok", "refused", "failed", "gone"]
"""Whole; a 4xx; a 5xx or a stream that broke off; the client left."""

_OPERATIONS = {"/v1/completions": "text_completion", "/v1/chat/completions": "chat"}
_GONE = 499
_BROKEN = b'data: {"error":'


class Observed:
    """Pure ASGI: tells the metrics of requests to the endpoints that generate.

    The model is what the route notes in the request's state; names that are none of `models` are
    the client's own words, and told to nobody.
    """

    def __init__(self, app: ASGIApp, metrics: Metrics, models: Iterable[str]) -> None:
        self._app = app
        self._metrics = metrics
        self._models = frozenset(models)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        operation = _OPERATIONS.get(scope.get("path", "")) if scope["type"] == "http" else None
        if operation is None:
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        seen = _Seen(send)
        began = time.monotonic()
        headers = {k.decode("latin-1"): v.decode("latin-1") for k, v in scope["headers"]}
        attributes = {"gen_ai.operation.name": operation, "gen_ai.provider.name": "adapter"}
        told = observe.set(lambda stage, took: self._metrics.took(self._model(state), stage, took))
        spent: list[tuple[int, int]] = []
        billed.set(spent)
        self._metrics.running.inc()
        try:
            with span(operation, "server", attributes, headers) as running, current(running):
                await self._app(scope, receive, seen.send)
                _describe(running, operation, self._model(state), state["request_id"])
                _bill(running, spent)
                if seen.outcome in ("failed", "gone"):
                    failed(running, seen.outcome)
        finally:
            observe.reset(told)
            self._finished(operation, state, seen, began)
            self._metrics.running.dec()

    def _model(self, state: MutableMapping[str, Any]) -> str:
        name = state.get("model")
        return name if name in self._models else ""

    def _finished(
        self, operation: str, state: MutableMapping[str, Any], seen: "_Seen", began: float
    ) -> None:
        model = self._model(state)
        self._metrics.asked(model, operation, seen.outcome)
        times: dict[Stage, float | None] = {"first_token": seen.opened, "request": seen.closed}
        for stage, when in times.items():
            if when is not None and seen.outcome == "ok":
                self._metrics.took(model, stage, when - began)


class _Seen:
    """What was sent: when a stream was opened, when the last byte left, how it came out."""

    def __init__(self, send: Send) -> None:
        self.opened: float | None = None
        self.closed: float | None = None
        self._send = send
        self._status = 0
        self._broken = False

    @property
    def outcome(self) -> Outcome:
        if self._status == _GONE or self.closed is None:
            return "gone"
        if self._broken or self._status >= 500:
            return "failed"
        return "refused" if self._status >= 400 else "ok"

    async def send(self, message: Message) -> None:
        if message["type"] == "http.response.start":
            self._status = message["status"]
            if any(v.startswith(b"text/event-stream") for k, v in message["headers"]):
                self.opened = time.monotonic()
        else:
            self._broken |= message.get("body", b"").startswith(_BROKEN)
        await self._send(message)
        if message["type"] == "http.response.body" and not message.get("more_body", False):
            self.closed = time.monotonic()


def _describe(running: Any, operation: str, model: str, request_id: str) -> None:
    """What is known of a request only at its end."""
    if running is None:
        return
    running.set_attribute("adapter.request_id", request_id)
    if model:
        running.update_name(f"{operation} {model}")
        running.set_attribute("gen_ai.request.model", model)
        running.set_attribute("gen_ai.response.model", model)


def _bill(running: Any, spent: Iterable[tuple[int, int]]) -> None:
    """The tokens that the upstream billed for all choices."""
    if running is not None:
        read, written = (sum(column) for column in zip((0, 0), *spent, strict=True))
        running.set_attribute("gen_ai.usage.input_tokens", read)
        running.set_attribute("gen_ai.usage.output_tokens", written)
