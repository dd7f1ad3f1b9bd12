"""Rules for every test: no network beyond loopback, threads that leave the machine usable."""

import atexit
import os
import shutil
import socket
import tempfile

# Before torch is imported: spinning threads make a contended machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Token maps built here must not land among, or be taken from, the user's own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="adapter-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

import pytest  # noqa: E402 - the environment is set first

_LOOPBACK = ("127.", "::1", "localhost")
_connect = socket.socket.connect


def _loopback_only(self, address):
    if self.family in (socket.AF_INET, socket.AF_INET6):
        host = str(address[0])
        if not host.startswith(_LOOPBACK):
            raise AssertionError(f"a test tried to reach {host}; tests stay on loopback")
    return _connect(self, address)


@pytest.fixture(autouse=True, scope="session")
def _no_network():
    """Any connection to another machine fails the test that tries it."""
    socket.socket.connect = _loopback_only
    yield
    socket.socket.connect = _connect
