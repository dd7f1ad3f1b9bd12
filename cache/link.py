"""The one way to a Redis that may die at any time: every call has a deadline and fails fast."""

import asyncio
import logging
import re
import ssl
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any
from urllib.parse import parse_qs, urlsplit

from redis.asyncio import BlockingConnectionPool, Connection, Redis, SSLConnection
from redis.asyncio.connection import parse_url
from redis.asyncio.retry import Retry
from redis.backoff import NoBackoff
from redis.exceptions import NoPermissionError, ReadOnlyError, RedisError, ResponseError

from cache.breaker import Breaker
from cache.cache import CacheError, Unanswered
from cache.quiet import Quiet

_log = logging.getLogger(__name__)

_DEADLINE = 0.035
"""Seconds a call may take, waiting for a connection, connecting and logging in included.

A lost Redis is to cost 50 ms at most, and a busy machine's timers come 10 ms late and more. Of a
healthy one's 9,600 reads there none took so long; with two programs more on each core one in 60.
"""

_LATE = 0.02
"""Seconds past the deadline that show that this process stood still."""

_STALLS = 3

_PROBE_DEADLINE = 0.25
"""Seconds for a probe; it runs beside the requests, and the connection it makes is kept."""

_SERVICE_DEADLINE = 5.0
"""Seconds an answer may take in an operator's command."""

_CONNECTIONS = 8
_FILES = ("ssl_ca_certs", "ssl_certfile", "ssl_keyfile")
_FORM = "a Redis URL is redis://USER:PASSWORD@HOST:PORT/DATABASE, or rediss://"


class RedisLink:
    """A connection pool behind a deadline and a breaker.

    Nothing but the given commands, AUTH, PING and, for a database other than 0, SELECT is sent.
    `purpose` names the link in the log, which never has more of the URL than host and port.
    `deadline` is in seconds. Raises CacheError for a URL that cannot be right.
    """

    def __init__(
        self,
        url: str,
        purpose: str,
        *,
        deadline: float = _DEADLINE,
        clock: Callable[[], float] = time.monotonic,
    ) -> None:
        self._url = url
        self._deadline = deadline
        arguments = _arguments(url)
        self.name = f"{purpose}: Redis at {arguments['host']}:{arguments['port']}"
        self._client: Any = _client(arguments, deadline)  # execute_command is untyped
        self._breaker = Breaker(self.name, clock=clock)
        self._probe: asyncio.Task[None] | None = None
        self._quiet = Quiet(_log, clock=clock)
        self._stalls = 0
        self._stalled_at = 0.0

    @property
    def down(self) -> bool:
        """Whether it is being left alone at the moment."""
        return not self._breaker.closed

    async def call(self, *command: bytes | str | int) -> Any:
        """The answer to one command; never repeated. Raises Unanswered, at the deadline at last."""
        if self.down:
            self._probe_if_due()
            raise Unanswered(f"{self.name} is left alone")
        begun = time.monotonic()
        try:
            async with asyncio.timeout(self._deadline):
                answer = await self._client.execute_command(*command)
        except ResponseError as error:
            self._refused(error)
            raise Unanswered(f"{self.name} refuses") from None
        except Exception as error:  # noqa: BLE001 - whatever the peer makes the client raise
            if not self._stood_still(begun):
                self._breaker.failed(type(error).__name__)
            raise Unanswered(f"{self.name} does not answer") from None
        self._answered()
        return answer

    def nonsense(self) -> Unanswered:
        """To be raised for an answer of the wrong type: whoever gave it is no Redis."""
        self._breaker.failed("a senseless answer")
        return Unanswered(f"{self.name} answers senselessly")

    async def delete_all(self, pattern: str) -> int:
        """Delete the keys that match; returns how many. Raises CacheError."""
        client = _client(_arguments(self._url), _SERVICE_DEADLINE)
        count, cursor = 0, 0
        try:
            while True:
                cursor, keys = await client.scan(cursor, match=pattern, count=1000)
                count += await client.delete(*keys) if keys else 0
                if not cursor:
                    return count
        except NoPermissionError:
            message = f"{self.name}: this account may not SCAN; clearing needs one that may"
            raise CacheError(message) from None
        except ReadOnlyError:
            raise CacheError(f"{self.name} is a read-only replica") from None
        except (RedisError, OSError) as error:
            raise CacheError(f"{self.name} cannot be cleared: {type(error).__name__}") from None
        finally:
            await client.aclose(close_connection_pool=True)

    async def close(self) -> None:
        """End the probe and close the connections."""
        if self._probe is not None:
            self._probe.cancel()
            await asyncio.wait({self._probe})
        try:
            await self._client.aclose(close_connection_pool=True)
        except (RedisError, OSError) as error:
            _log.debug("%s: %s on closing", self.name, type(error).__name__)

    def _answered(self) -> None:
        self._breaker.succeeded()
        self._stalls = 0

    def _stood_still(self, begun: float) -> bool:
        """Whether a call failed so late that this process itself was the cause.

        An answer may have been there unread, so Redis is not blamed before the third time.
        """
        now = time.monotonic()
        if now - begun < self._deadline + _LATE:
            return False
        if begun >= self._stalled_at:  # others that were under way saw the same standstill
            self._stalls += 1
            self._stalled_at = now
        return self._stalls < _STALLS

    def _refused(self, error: ResponseError) -> None:
        """An error reply costs no time, and reads may work where writes do not: no breaker."""
        self._answered()
        self._quiet.warn("%s refuses commands (%s)", self.name, type(error).__name__)

    def _probe_if_due(self) -> None:
        if self._breaker.probe():
            self._probe = asyncio.create_task(self._ping())

    async def _ping(self) -> None:
        """Ask beside the requests, which meanwhile do without."""
        reason: str | None = "cancelled"
        try:
            async with asyncio.timeout(_PROBE_DEADLINE):
                pong = await self._client.execute_command("PING")
            reason = None if pong is True else "a senseless answer"
        except Exception as error:  # noqa: BLE001 - as in `call`
            reason = type(error).__name__
        finally:
            self._breaker.probed(reason)


class _TLSConnection(SSLConnection):
    """Shares one context: making one reads the system's certificates, 10 ms and more."""

    def __init__(self, *, context: ssl.SSLContext, **arguments: Any) -> None:
        super().__init__(**arguments)
        self.ssl_context.context = context


def _arguments(url: str) -> dict[str, Any]:
    """Of the URL only what cannot undo the deadlines or the checking of certificates."""
    try:
        parts = urlsplit(url)
        given: dict[str, Any] = dict(parse_url(url))
    except ValueError:
        raise CacheError(_FORM) from None
    if not re.fullmatch(r"/?\d*", parts.path):
        raise CacheError(_FORM)
    unknown = sorted(set(parse_qs(parts.query, keep_blank_values=True)) - set(_FILES))
    if unknown:
        raise CacheError(f"a Redis URL may not set {unknown[0]}; only {', '.join(_FILES)}")
    files = {name: given.pop(name, None) for name in _FILES}
    connection = given.pop("connection_class", Connection)
    given = {"host": "localhost", "port": 6379, **given, "connection_class": connection}
    if issubclass(connection, SSLConnection):
        given |= {"connection_class": _TLSConnection, "context": _context(files)}
    elif any(files.values()):
        raise CacheError("certificates are for rediss://, this URL begins with redis://")
    return given


def _context(files: dict[str, str | None]) -> ssl.SSLContext:
    for name, file in files.items():
        if file is not None and not Path(file).is_file():
            raise CacheError(f"{name}: there is no file {file}")
    try:
        context = ssl.create_default_context(cafile=files["ssl_ca_certs"])
        if files["ssl_certfile"] is not None:
            context.load_cert_chain(files["ssl_certfile"], files["ssl_keyfile"])
    except (ssl.SSLError, OSError):
        raise CacheError("the certificate files of the Redis URL cannot be used") from None
    return context


def _client(arguments: dict[str, Any], deadline: float) -> Redis:
    """redis-py's defaults block for seconds and repeat ten times; see the tests of faults."""
    pool = BlockingConnectionPool(
        max_connections=_CONNECTIONS,
        timeout=deadline,
        socket_timeout=deadline,
        socket_connect_timeout=deadline,
        retry=Retry(NoBackoff(), 0),
        protocol=2,  # 3 begins with commands that the least-rights account may not send
        driver_info=None,
        **arguments,
    )
    return Redis(connection_pool=pool)
