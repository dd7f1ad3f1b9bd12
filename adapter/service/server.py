"""The web server that runs the service: uvicorn, with our logs."""

import asyncio
import gc
import json
import logging
import socket
from collections.abc import Callable
from typing import Any

import uvicorn
from starlette.types import ASGIApp

from adapter.settings import LogSettings
from adapter.stages import request_id

_LAST_ANSWERS = 20
"""Seconds that running answers have when the server is told to stop; then they are cancelled."""

_LAST_WORDS = 5.0
"""Seconds that those have to tell their clients, before the loop ends with all that is in it."""


class Server(uvicorn.Server):
    """Says its address when it is ready for requests."""

    def __init__(self, app: ASGIApp, log: LogSettings, say: Callable[[str], None]) -> None:
        config = uvicorn.Config(
            app,
            log_config=log_config(log),
            server_header=False,
            ws="none",
            lifespan="on",
            timeout_graceful_shutdown=_LAST_ANSWERS,
        )
        super().__init__(config)
        self._say = say

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        settle()
        await super().startup(sockets)
        if self.started and sockets:
            self._say(f"adapter listens on {address(sockets[0])}")

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.server_state.tasks and not self.force_exit:
            await asyncio.wait(self.server_state.tasks, timeout=_LAST_WORDS)


def settle() -> None:
    """Spare the garbage collector what is loaded by now, which lives as long as the process.

    With torch that is half a million objects, and looking at them all stopped every answer for
    0.3 s each time.
    """
    gc.collect()
    gc.freeze()


def address(listening: socket.socket) -> str:
    """The URL of a bound socket."""
    host, port = listening.getsockname()[:2]
    return f"http://[{host}]:{port}" if ":" in host else f"http://{host}:{port}"


def log_config(log: LogSettings) -> dict[str, Any]:
    """A configuration for `logging`: everything to stderr, in one form."""
    text = {"format": "%(asctime)s %(levelname)s %(name)s [%(request_id)s]: %(message)s"}
    return {
        "version": 1,
        "disable_existing_loggers": False,
        "formatters": {"text": text, "json": {"()": JsonLines}},
        "filters": {"request": {"()": Request}},
        "handlers": {
            "stderr": {
                "class": "logging.StreamHandler",
                "formatter": log.format,
                "filters": ["request"],
            }
        },
        "root": {"handlers": ["stderr"], "level": "WARNING"},
        "loggers": {name: {"level": log.level.upper()} for name in ("adapter", "cache", "uvicorn")},
    }


class Request(logging.Filter):
    """Notes in each record the id of the request that it is from, - where it is from none."""

    def filter(self, record: logging.LogRecord) -> bool:
        if not hasattr(record, "request_id"):
            record.request_id = request_id.get()
        return True


class JsonLines(logging.Formatter):
    """One JSON object a line."""

    def format(self, record: logging.LogRecord) -> str:
        line = {
            "time": self.formatTime(record),
            "level": record.levelname,
            "logger": record.name,
            "request_id": getattr(record, "request_id", "-"),
            "message": record.getMessage(),
        }
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)
