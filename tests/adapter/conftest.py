"""Services on real sockets in front of scripted adapters, for the service, client and CLI."""

from tests.support.services import hello, serve, settings

__all__ = ["hello", "serve", "settings"]
