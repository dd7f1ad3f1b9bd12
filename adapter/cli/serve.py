"""adapter serve: the OpenAI-compatible service."""

import contextlib
import signal
import socket
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.errors import SettingsError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from prometheus_client import CollectorRegistry

    from adapter.settings import ServiceSettings, Settings


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

    adapter = Adapter.from_settings(settings)
    if settings.service.metrics_port is not None:
        _serve_metrics(settings.service, adapter.metrics.registry)
    app = create_app(adapter, settings)
    Server(app, settings.log, typer.echo).run([listening])


def _serve_metrics(service: "ServiceSettings", registry: "CollectorRegistry") -> None:
    """Metrics on a port and thread of their own. Raises SettingsError where it is in use."""
    from prometheus_client import start_http_server

    try:
        start_http_server(service.metrics_port or 0, service.host, registry)
    except OSError as error:
        raise SettingsError(f"service.metrics_port: {error.strerror}") from error


def _bind(host: str, port: int) -> socket.socket:
    """A bound socket, taken before anything is loaded. Raises SettingsError where it is in use.

    Of a socket that does not name its protocol asyncio would not know that it is TCP, and answers
    would wait 40 ms for acknowledgements.
    """
    try:
        found = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        family, kind, protocol, _, address = found[0]
        listening = socket.socket(family, kind, protocol)
        listening.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        listening.bind(address)
    except OSError as error:
        raise SettingsError(f"cannot listen on {host}:{port}: {error.strerror}") from error
    return listening
