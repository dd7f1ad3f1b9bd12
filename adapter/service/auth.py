"""Who may ask: API keys in front of every route."""

import hashlib
import hmac
import re
from collections.abc import Callable, Iterable, Sequence

from fastapi.responses import JSONResponse
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.errors import AdapterError, InvalidKey
from adapter.service.failures import failure
from adapter.settings import KeySettings

OPEN = frozenset({"/healthz", "/readyz", "/"})
"""Paths for everyone: they tell of nothing but the process. All others need a key."""


class Auth:
    """Pure ASGI: lets requests with a known key pass; it is then the request's `state.key`.

    Whatever it does not know is refused, unknown paths too, and told to `refused`. Without keys all
    requests pass.
    """

    def __init__(
        self,
        app: ASGIApp,
        keys: Sequence[KeySettings],
        refused: Callable[[AdapterError], None],
    ) -> None:
        self._app = app
        self._refused = refused
        self._keys = tuple((key, bytes.fromhex(key.sha256)) for key in keys)

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan":
            return await self._app(scope, receive, send)
        state = scope.setdefault("state", {})
        state["key"] = None
        if self._keys and scope["path"] not in OPEN:
            try:
                state["key"] = self._known(bearer(scope["headers"]))
            except InvalidKey as error:
                return await refuse(error, self._refused, scope, receive, send)
        return await self._app(scope, receive, send)

    def _known(self, key: bytes) -> KeySettings:
        """The settings of a key; each comparison takes the same time, and all are made."""
        digest, found = hashlib.sha256(key).digest(), None
        for settings, expected in self._keys:
            if hmac.compare_digest(expected, digest):
                found = settings
        if found is None:
            raise InvalidKey("this API key is not known here")
        return found


def bearer(headers: Iterable[tuple[bytes, bytes]]) -> bytes:
    """The key in the one Authorization header of a request. Raises InvalidKey."""
    given = [value for name, value in headers if name.lower() == b"authorization"]
    found = re.fullmatch(rb"bearer +(\S+)", given[0], re.IGNORECASE) if len(given) == 1 else None
    if found is None:
        raise InvalidKey("send an API key in one header, as in `Authorization: Bearer KEY`")
    return found[1]


async def refuse(
    error: AdapterError,
    refused: Callable[[AdapterError], None],
    scope: Scope,
    receive: Receive,
    send: Send,
) -> None:
    """Tell of a request that gets no further, and answer it."""
    refused(error)
    told = failure(error, scope["state"]["request_id"])
    await JSONResponse(told.body, told.status, headers=told.headers)(scope, receive, send)
