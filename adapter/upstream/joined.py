"""Joined: a request's head and body leave in one piece, and the server is woken once."""

from collections.abc import Iterable
from contextlib import suppress
from ssl import SSLContext
from typing import Any

import httpcore2
import httpx2


def joined(limits: httpx2.Limits) -> httpx2.AsyncHTTPTransport:
    """A transport with a pool of its own whose requests leave in one piece each.

    httpx2 has no parameter for httpcore2's network backends, so the pool's is replaced.
    """
    transport = httpx2.AsyncHTTPTransport(trust_env=False, limits=limits)
    pool = transport._pool
    pool._network_backend = Joined(pool._network_backend)
    return transport


class Joined(httpcore2.AsyncNetworkBackend):
    """A network whose streams hold what is written until they are read from."""

    def __init__(self, network: httpcore2.AsyncNetworkBackend) -> None:
        self._network = network

    async def connect_tcp(
        self,
        host: str,
        port: int,
        timeout: float | None = None,  # noqa: ASYNC109 - httpcore's
        local_address: str | None = None,
        socket_options: Iterable[Any] | None = None,
    ) -> httpcore2.AsyncNetworkStream:
        """A stream to a host."""
        return _Stream(
            await self._network.connect_tcp(host, port, timeout, local_address, socket_options)
        )

    async def sleep(self, seconds: float) -> None:
        """Between attempts to connect."""
        await self._network.sleep(seconds)


class _Stream(httpcore2.AsyncNetworkStream):
    def __init__(self, stream: httpcore2.AsyncNetworkStream) -> None:
        self._stream = stream
        self._held = bytearray()

    async def write(self, buffer: bytes, timeout: float | None = None) -> None:  # noqa: ASYNC109
        self._held += buffer

    async def read(self, max_bytes: int, timeout: float | None = None) -> bytes:  # noqa: ASYNC109
        if self._held:
            held, self._held = bytes(self._held), bytearray()
            with suppress(httpcore2.WriteError):  # the server may have answered all the same
                await self._stream.write(held, timeout)
        return await self._stream.read(max_bytes, timeout)

    async def aclose(self) -> None:
        await self._stream.aclose()

    async def start_tls(
        self,
        ssl_context: SSLContext,
        server_hostname: str | None = None,
        timeout: float | None = None,  # noqa: ASYNC109
    ) -> httpcore2.AsyncNetworkStream:
        return _Stream(await self._stream.start_tls(ssl_context, server_hostname, timeout))

    def get_extra_info(self, info: str) -> Any:
        return self._stream.get_extra_info(info)
