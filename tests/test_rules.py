"""Rules of the whole project that a machine can check."""

import re
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from tests.conftest import Measured
from tests.reliability.promises import PROMISES
from tests.support import loopback

ROOT = Path(__file__).parent.parent
RUFF = Path(sys.executable).parent / "ruff"
FORMATS = ("S301", "S302", "S307", "TID251")
"""Pickle and marshal, eval, and the modules that the settings of TID251 ban."""


def findings(*arguments: str, given: str | None = None) -> list[str]:
    """What ruff finds of executable formats."""
    command = [RUFF, "check", "--select", ",".join(FORMATS), "--output-format", "concise"]
    done = subprocess.run(
        [*command, *arguments], cwd=ROOT, input=given, capture_output=True, text=True
    )
    return [line for line in done.stdout.splitlines() if re.search(r":\d+:\d+: ", line)]


@pytest.mark.reliability("A9")
@pytest.mark.skipif(not RUFF.exists() and not shutil.which("ruff"), reason="needs ruff")
def test_no_executable_formats(measured: Measured) -> None:
    bad = "import pickle, marshal, shelve, dill, cloudpickle\neval(input())\npickle.loads(b'')\n"
    seen = findings("--stdin-filename", "cache/bad.py", "-", given=bad)
    assert len(seen) >= 7  # the canary
    assert findings("adapter", "cache", "tokenizer_maps") == []
    measured("adapter, cache, tokenizer_maps", "0 findings")


def _hang_on(host: str) -> Callable[[], object]:
    def connect() -> object:
        with socket.socket() as one:
            return one.connect_ex((host, 9))

    return connect


def _sent() -> object:
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as one:
        return one.sendto(b"x", ("192.0.2.1", 9))


BEYOND = {
    "connect": lambda: socket.create_connection(("192.0.2.1", 9), 0.1),
    "connect_ex": _hang_on("192.0.2.1"),
    "sendto": _sent,
    "a name": lambda: socket.getaddrinfo("adapter.example", 80),
    "a name like loopback": lambda: socket.getaddrinfo("localhost.example.com", 80),
    "IPv6": lambda: socket.getaddrinfo("2001:db8::1", 80),
}


@pytest.mark.reliability("C6")
@pytest.mark.parametrize("way", BEYOND)
def test_no_test_reaches_beyond_loopback(way: str, measured: Measured) -> None:
    before = len(loopback.refused)
    with pytest.raises(AssertionError, match="tests stay on loopback"):
        BEYOND[way]()
    assert len(loopback.refused) == before + 1
    loopback.refused.pop()
    measured("6 ways out", "all refused, and noticed at the end where the error is swallowed")


def test_names_that_only_look_like_loopback_are_none() -> None:
    assert not any(
        map(loopback.is_loopback, ("127.example.com", "localhost.x", "1.127.0.0", "::2"))
    )


def test_loopback_itself_is_open() -> None:
    with socket.create_server(("127.0.0.1", 0)) as server:
        for host in ("127.0.0.1", "localhost"):
            socket.create_connection((host, server.getsockname()[1]), 5).close()


def test_every_promise_has_its_tests_and_its_row() -> None:
    files = [path.read_text("utf-8") for path in (ROOT / "tests").rglob("test_*.py")]
    marked = {name for text in files for name in re.findall(r'reliability\("(\w+)"\)', text)}
    assert marked == PROMISES.keys()
    table = (ROOT / "tests" / "RELIABILITY.md").read_text("utf-8")
    assert re.findall(r"^\| (\w+) \|", table, re.MULTILINE)[1:] == list(PROMISES)
