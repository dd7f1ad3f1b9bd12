"""API keys for tests, and requests written to a socket byte for byte."""

import contextlib
import hashlib
import socket
from collections.abc import Sequence
from urllib.parse import urlsplit

from adapter.settings import KeySettings

KEY = "adapter-canary-7Qk2Xw9Zr4Tn8Vb3"
OTHER = "adapter-another-5Lm1Pd6Hs0Gy7Jc"


def key_settings(name: str, key: str, **more) -> KeySettings:
    return KeySettings(name=name, sha256=hashlib.sha256(key.encode()).hexdigest(), **more)


def bearer(key: str) -> dict[str, str]:
    return {"authorization": f"Bearer {key}"}


def status_of(
    address: str,
    method: str,
    target: bytes,
    headers: Sequence[tuple[bytes, bytes]],
    body: bytes = b"",
) -> int | None:
    """The status a service answers such a request with, None where it hangs up instead."""
    at = urlsplit(address)
    lines = [b"%s %s HTTP/1.1" % (method.encode(), target), b"connection: close"]
    lines += [b"%s: %s" % header for header in headers]
    lines.append(b"content-length: %d" % len(body))
    with socket.create_connection((at.hostname, at.port), timeout=30) as connection:
        with contextlib.suppress(ConnectionError):  # an answer may come before all is sent
            connection.sendall(b"\r\n".join([*lines, b"", body]))
        return _status(connection)


def _status(connection: socket.socket) -> int | None:
    data = b""
    with contextlib.suppress(ConnectionError):
        while b"\r\n" not in data and (more := connection.recv(4096)):
            data += more
    return int(data.split(b" ", 2)[1]) if data else None
