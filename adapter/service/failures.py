"""What a client is told about a failure: status, body in OpenAI's shape, and whether to retry."""

import asyncio
import logging
import math
import traceback
from dataclasses import dataclass
from typing import Any

from starlette.exceptions import HTTPException

from adapter.errors import (
    AdapterError,
    BadRequest,
    LimitReached,
    MoneyExceeded,
    ServiceStopping,
    UpstreamTimeout,
    UpstreamUnavailable,
)

_LOG = logging.getLogger("adapter.service")
_TRANSIENT = (LimitReached, ServiceStopping, UpstreamUnavailable, UpstreamTimeout)
_UNEXPECTED = AdapterError("the service met an error of its own; its log says which")
_STOPPING = ServiceStopping("the service stops, and this answer is not whole; ask again")
_CODES = {
    404: "unknown_url",
    405: "method_not_allowed",
    408: "timeout",
    413: "too_large",
    415: "media_type",
}


@dataclass(frozen=True, slots=True)
class Failure:
    """A failure as it leaves the service."""

    status: int
    body: dict[str, Any]
    headers: dict[str, str]


def failure(error: Exception | asyncio.CancelledError, request_id: str) -> Failure:
    """Any exception as an answer; server-side failures are logged, without values or user text.

    Only a server that stops cancels a request that somebody still waits for.
    """
    if isinstance(error, HTTPException):
        return _http_failure(error)
    if isinstance(error, asyncio.CancelledError):
        error = _STOPPING
    known = error if isinstance(error, AdapterError) else _UNEXPECTED
    named = {"request_id": request_id}
    if known is _UNEXPECTED:
        frames = "".join(traceback.format_tb(error.__traceback__))
        _LOG.error("unexpected %s at\n%s", type(error).__name__, frames, extra=named)
    elif known.status >= 500:
        _LOG.warning("%d %s, %s", known.status, known.code, known.message, extra=named)
    return Failure(known.status, known.body(), _retry_header(known))


def _http_failure(error: HTTPException) -> Failure:
    """What the router or the body reader refused."""
    told = BadRequest(error.detail).body()
    told["error"]["code"] = _CODES.get(error.status_code)
    return Failure(error.status_code, told, dict(error.headers or {}))


def _retry_header(error: AdapterError) -> dict[str, str]:
    """OpenAI's SDK repeats 429 and 5xx by itself; a repeat that cannot help costs money.

    No money is left for a 402: that is said to clients that repeat whatever they can.
    """
    if error.status < 429 and not isinstance(error, MoneyExceeded):
        return {}
    told = {"x-should-retry": "true" if isinstance(error, _TRANSIENT) else "false"}
    if error.retry_after is not None:
        told["retry-after"] = str(math.ceil(error.retry_after))
        told["retry-after-ms"] = str(math.ceil(1e3 * error.retry_after))
    return told
