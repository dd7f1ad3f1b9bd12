"""Real Redis servers: one that all share, and ones to be killed."""

from collections.abc import Iterator

import pytest

from tests.support.redis_server import RedisServer, redis_server


@pytest.fixture(scope="session")
def steady() -> Iterator[RedisServer]:
    """A server that nobody harms; each test uses keys or names of its own."""
    with redis_server() as server:
        yield server


@pytest.fixture
def mortal() -> Iterator[RedisServer]:
    """A server of this test's own."""
    with redis_server() as server:
        yield server
