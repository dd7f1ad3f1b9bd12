"""adapter serve: the OpenAI-compatible service."""

import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.errors import SettingsError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.settings import Settings


def serve(
    settings: Annotated[Path, typer.Argument(help="The settings file.", metavar="SETTINGS.yaml")],
    host: Annotated[str | None, typer.Option(help="Listen here instead of service.host.")] = None,
    port: Annotated[
        int | None, typer.Option(help="Listen here instead of service.port; 0 takes a free one.")
    ] = None,
) -> None:
    """Serve the models of a settings file to OpenAI clients.

    Example: adapter serve adapter.yaml --port 8080
    """
    from adapter.settings import load_settings

    given = {("service", "host"): host, ("service", "port"): port}
    loaded = load_settings(settings, {k: v for k, v in given.items() if v is not None})
    listening = _bind(loaded.service.host, loaded.service.port)

    signal.signal(signal.SIGTERM, signal.default_int_handler)
    # Whether a signal comes out as an exception is a race inside asyncio.
    with contextlib.suppress(KeyboardInterrupt):
        _run(loaded, listening)
    typer.echo("adapter: stopped", err=True)


def _run(settings: "Settings", listening: socket.socket) -> None:
    from adapter.adapter import Adapter
    from adapter.service.app import create_app
    from adapter.service.server import Server

    app = create_app(Adapter.from_settings(settings), settings)
    Server(app, settings.log, typer.echo).run([listening])


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket, taken before anything is loaded. Raises SettingsError where it is in use."""
    try:
        family, kind, *_, address = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)[0]
        listening = socket.socket(family, kind)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listening
