"""Stages of a request: how long each took, for whoever counts, and spans for OpenTelemetry.

Without the extra `otel` there are no spans. Their names and attributes are OpenTelemetry's gen_ai
conventions; no prompt, answer or key is in them.
"""

import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, nullcontext
from contextvars import ContextVar
from typing import TYPE_CHECKING, Literal

if TYPE_CHECKING:
    from contextlib import AbstractContextManager

    from opentelemetry.trace import Span

try:
    from opentelemetry import propagate, trace
except ImportError:  # the extra `otel` is not installed
    _TRACED = False
else:
    _TRACED = True

Stage = Literal["request", "first_token", "upstream", "pair"]
"""What is timed: a whole request, a stream up to its first token, an attempt at an upstream call
up to its last byte, and a reading by the pair, the wait for its turn included."""

Attributes = Mapping[str, str | int | float]

request_id: ContextVar[str] = ContextVar("request_id", default="-")
"""The id of the request that runs in this context."""

observe: ContextVar[Callable[[Stage, float], None] | None] = ContextVar("observe", default=None)
"""Who is told how many seconds a stage of this context's request took."""

billed: ContextVar[list[tuple[int, int]] | None] = ContextVar("billed", default=None)
"""Where input and output tokens that the upstream billed this context's request are noted."""


@contextmanager
def stage(name: Stage, title: str, attributes: Attributes) -> "Iterator[Span | None]":
    """Times the block, and spans it under a title."""
    began = time.monotonic()
    try:
        # Not made current: it has no inner spans, and a stream may end in another context.
        with span(title, "client" if name == "upstream" else "internal", attributes) as running:
            yield running
    finally:
        observer = observe.get()
        if observer is not None:
            observer(name, time.monotonic() - began)


@contextmanager
def span(
    title: str,
    kind: Literal["server", "client", "internal"],
    attributes: Attributes,
    headers: Mapping[str, str] | None = None,
) -> "Iterator[Span | None]":
    """A span around a block, None without OpenTelemetry; what it raises is told by its type alone.

    `headers` are an incoming request's, whose trace it goes on with.
    """
    if not _TRACED:
        yield None
        return
    parent = None if headers is None else propagate.extract(headers)
    running = trace.get_tracer("adapter").start_span(
        title, parent, trace.SpanKind[kind.upper()], dict(attributes)
    )
    try:
        yield running
    except Exception as error:  # who is cancelled or cut has not failed
        failed(running, type(error).__name__)
        raise
    finally:
        running.end()


def current(running: "Span | None") -> "AbstractContextManager[object]":
    """Makes a span the parent of those that begin in a block, which must end in its context."""
    if running is None:
        return nullcontext()
    return trace.use_span(running, record_exception=False, set_status_on_exception=False)


def failed(running: "Span | None", kind: str) -> None:
    """Mark a span as failed, by the kind of its error."""
    if running is not None:
        running.set_attribute("error.type", kind)
        running.set_status(trace.StatusCode.ERROR)
