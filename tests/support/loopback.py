"""No test reaches beyond this machine: connections and look-ups elsewhere are refused."""

import ipaddress
import sys
from typing import Any

_EVENTS = ("socket.connect", "socket.sendto", "socket.sendmsg", "socket.getaddrinfo")

refused: list[str] = []
"""Whatever was tried, for the end of the session: code under test may swallow the error."""


def is_loopback(host: str | bytes | None) -> bool:
    """Whether a name or an address can only be this machine; None is any address of it."""
    name = host.decode("ascii", "replace") if isinstance(host, bytes) else host
    if name is None or name in ("", "localhost"):
        return True
    try:
        return ipaddress.ip_address(name.partition("%")[0]).is_loopback
    except ValueError:
        return False


def guard() -> None:
    """From now on, and for as long as the process lives.

    An audit hook sees every call, also those of C code that no patch of the module would.
    """
    sys.addaudithook(_hook)


def _hook(event: str, arguments: tuple[Any, ...]) -> None:
    if event not in _EVENTS:
        return
    if event == "socket.getaddrinfo":
        host = arguments[0]
    elif isinstance(arguments[1], tuple):
        host = arguments[1][0]
    else:
        return  # a path in the file system, or a socket that is connected already
    if not is_loopback(host):
        refused.append(f"{event} {host}")
        raise AssertionError(f"a test tried to reach {host}; tests stay on loopback")
