"""How much at once and how often: what passes is admitted at once, the rest refused at once.

Counted in this process alone: replicas each allow as much.
"""

import secrets
import time
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from limits import RateLimitItemPerMinute
from limits.storage import MemoryStorage
from limits.strategies import MovingWindowRateLimiter
from starlette.types import ASGIApp, Receive, Scope, Send

from adapter.errors import AdapterError, LimitReached
from adapter.service.auth import OPEN, refuse
from adapter.settings import KeySettings


class Limits:
    """Pure ASGI: holds requests to `service.max_concurrency` and to the limits of their key.

    A request counts until its answer is sent, a stream until its end; `refused` is told of the
    others. Needs `state.key`.
    """

    def __init__(
        self, app: ASGIApp, max_concurrency: int, refused: Callable[[AdapterError], None]
    ) -> None:
        self._app = app
        self._refused = refused
        self._most = max_concurrency
        self._running: Counter[str | None] = Counter()
        self._rates = MovingWindowRateLimiter(MemoryStorage())

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        if scope["type"] == "lifespan" or scope["path"] in OPEN:
            return await self._app(scope, receive, send)
        try:
            with self._admitted(scope["state"]["key"]):
                await self._app(scope, receive, send)
        except LimitReached as error:
            await refuse(error, self._refused, scope, receive, send)

    @contextmanager
    def _admitted(self, key: KeySettings | None) -> Iterator[None]:
        """A place for one request. Raises LimitReached; a refusal uses up nothing."""
        name = None if key is None else key.name
        if self._running.total() >= self._most:
            raise LimitReached("the service is busy", retry_after=_soon())
        if key is not None:
            self._check(key)
        self._running[name] += 1
        try:
            yield
        finally:
            self._running[name] -= 1

    def _check(self, key: KeySettings) -> None:
        if key.concurrency is not None and self._running[key.name] >= key.concurrency:
            raise LimitReached(
                f"this key may ask for {key.concurrency} answers at once", retry_after=_soon()
            )
        if key.per_minute is None:
            return
        rate = RateLimitItemPerMinute(key.per_minute)
        if not self._rates.hit(rate, key.name):
            free = self._rates.get_window_stats(rate, key.name).reset_time - time.time()
            raise LimitReached(
                f"this key may ask {key.per_minute} times a minute", retry_after=max(0.001, free)
            )


def _soon() -> float:
    """Seconds until a place may be free, spread so that those refused do not come back at once."""
    return 0.5 + secrets.randbelow(1000) / 1000
