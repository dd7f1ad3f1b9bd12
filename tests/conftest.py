"""Rules for every test: no network beyond loopback, threads that leave the machine usable."""

import atexit
import os
import shutil
import tempfile

# Before torch is imported: spinning threads make a contended machine ten times slower.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")
os.environ.setdefault("HF_HUB_OFFLINE", "1")

# Token maps built here must not land among, or be taken from, the user's own.
os.environ["XDG_CACHE_HOME"] = tempfile.mkdtemp(prefix="adapter-tests-")
atexit.register(shutil.rmtree, os.environ["XDG_CACHE_HOME"], ignore_errors=True)

from collections.abc import Callable, Iterator  # noqa: E402 - the environment is set first

import pytest  # noqa: E402

from tests.support import loopback  # noqa: E402

Measured = Callable[..., None]


@pytest.fixture(autouse=True, scope="session")
def _no_network() -> Iterator[None]:
    """Any connection to another machine fails the test that tries it, or else the session."""
    loopback.guard()
    yield
    assert loopback.refused == []


@pytest.fixture
def measured(record_property: Callable[[str, object], None]) -> Measured:
    """Notes what was run and seen, for tests/RELIABILITY.md: `measured("1,000 cuts", "0 silent")`.

    `met=False` where a goal in time is missed, which fails no test: machines may be busy.
    """

    def note(run: str, seen: str = "", *, met: bool = True) -> None:
        record_property("measured", (run, seen, met))

    return note
