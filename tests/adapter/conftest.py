"""Services on real sockets in front of scripted adapters, for the service, client and CLI."""

from tests.support.openai_schema import fits_openais_schema, wire_faults
from tests.support.services import hello, serve, settings

__all__ = ["fits_openais_schema", "hello", "serve", "settings", "wire_faults"]
