"""The servers that `make test` installs are real and start without root."""

import shutil
import subprocess
import sys
import time
from pathlib import Path

import pytest
import redis

from tests.support.sockets import free_port

BINARY = shutil.which("redis-server", path=str(Path(sys.executable).parent))


@pytest.mark.redis
def test_the_installed_redis_server_answers(tmp_path):
    assert BINARY, "redis-server comes with the development extra: pip install -e '.[dev]'"
    port = free_port()
    command = [BINARY, "--port", str(port), "--bind", "127.0.0.1", "--save", "", "--dir", tmp_path]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL) as process:
        try:
            with redis.Redis(port=port) as client:
                for _ in range(100):
                    try:
                        assert client.ping()
                        break
                    except redis.ConnectionError:
                        time.sleep(0.05)
                assert client.set("key", b"\x00value")
                assert client.get("key") == b"\x00value"
        finally:
            process.terminate()
