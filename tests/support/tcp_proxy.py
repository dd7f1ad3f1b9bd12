"""A loopback proxy that spoils what passes: what no real server can be made to do."""

import asyncio
import contextlib
import ssl
from collections.abc import AsyncIterator, Awaitable, Callable

Spoil = Callable[[bytes, asyncio.StreamWriter], Awaitable[None]]
"""Hands on some bytes of the server's answer, or does something worse."""


async def untouched(data: bytes, client: asyncio.StreamWriter) -> None:
    client.write(data)


def delayed(seconds: Callable[[], float]) -> Spoil:
    async def spoil(data: bytes, client: asyncio.StreamWriter) -> None:
        await asyncio.sleep(seconds())
        client.write(data)

    return spoil


def sliced(seconds: float) -> Spoil:
    """One byte at a time."""

    async def spoil(data: bytes, client: asyncio.StreamWriter) -> None:
        for byte in data:
            client.write(bytes([byte]))
            await client.drain()
            await asyncio.sleep(seconds)

    return spoil


def cut_after(count: int) -> Spoil:
    """Ends each connection after so many bytes of answers."""
    passed: dict[asyncio.StreamWriter, int] = {}

    async def spoil(data: bytes, client: asyncio.StreamWriter) -> None:
        left = count - passed.get(client, 0)
        client.write(data[:left])
        passed[client] = passed.get(client, 0) + len(data)
        if len(data) >= left:
            client.close()

    return spoil


def instead(answer: bytes) -> Spoil:
    async def spoil(data: bytes, client: asyncio.StreamWriter) -> None:
        client.write(answer)

    return spoil


class Proxy:
    """Listens on `port`; `spoil` may be changed at any time, `connections` counts."""

    def __init__(self, target: int) -> None:
        self.spoil: Spoil = untouched
        self.port = 0
        self.connections = 0
        self._target = target
        self._open: set[asyncio.StreamWriter] = set()
        self._tasks: set[asyncio.Task[None]] = set()

    def accept(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self.connections += 1
        task = asyncio.create_task(self._pass(reader, client))
        self._tasks.add(task)
        task.add_done_callback(self._tasks.discard)

    async def _pass(self, reader: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        self._open.add(client)
        with contextlib.suppress(OSError):
            answers, server = await asyncio.open_connection("127.0.0.1", self._target)
            self._open.add(server)
            await asyncio.gather(self._ask(reader, server), self._answer(answers, client))
        client.close()

    async def _ask(self, reader: asyncio.StreamReader, server: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await reader.read(65536):
                server.write(data)
        server.close()

    async def _answer(self, answers: asyncio.StreamReader, client: asyncio.StreamWriter) -> None:
        with contextlib.suppress(OSError):
            while data := await answers.read(65536):
                await self.spoil(data, client)
        client.close()

    async def drop(self) -> None:
        """Cut every connection."""
        for task in self._tasks:
            task.cancel()
        for writer in self._open:
            writer.close()
        self._open.clear()
        await asyncio.gather(*self._tasks, return_exceptions=True)


@contextlib.asynccontextmanager
async def proxy(target: int, context: ssl.SSLContext | None = None) -> AsyncIterator[Proxy]:
    """A proxy in front of a loopback port, with TLS towards its clients where one is given."""
    spoiler = Proxy(target)
    server = await asyncio.start_server(spoiler.accept, "127.0.0.1", 0, ssl=context)
    spoiler.port = server.sockets[0].getsockname()[1]
    try:
        yield spoiler
    finally:
        await spoiler.drop()
        server.close()
        await server.wait_closed()
