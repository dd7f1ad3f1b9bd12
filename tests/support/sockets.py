"""ASGI apps on real loopback sockets: test transports hide streaming and hang-ups."""

import asyncio
import contextlib
import socket
import threading
import time
from collections.abc import Iterator

import uvicorn
from fastapi import FastAPI
from starlette.types import ASGIApp

from tests.support.strict import Strict


class _Quick(uvicorn.Server):
    """Looks every 10 ms whether it should stop; uvicorn itself takes 100."""

    async def main_loop(self) -> None:
        while not await self.on_tick(0):  # noqa: ASYNC110 - another thread sets should_exit
            await asyncio.sleep(0.01)


@contextlib.contextmanager
def serving(app: ASGIApp) -> Iterator[str]:
    """The address of an app on a free port, served by a thread until the end of the block.

    Whatever our own service writes must be JSON to a strict reader.
    """
    strict = Strict(app)
    if isinstance(app, FastAPI):
        app = strict
    config = uvicorn.Config(app, host="127.0.0.1", port=0, log_config=None, ws="none")
    server = _Quick(config)
    thread = threading.Thread(target=server.run, daemon=True)
    thread.start()
    while not server.started:
        if not thread.is_alive():
            raise RuntimeError("the app did not start")
        time.sleep(0.005)
    try:
        port = server.servers[0].sockets[0].getsockname()[1]
        yield f"http://127.0.0.1:{port}"
    finally:
        server.should_exit = True
        thread.join(10)
    assert strict.wrong == []


def free_port() -> int:
    """A loopback port that nobody listens on at the moment."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
