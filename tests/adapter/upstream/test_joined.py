"""A request leaves in one piece, and what is read is the answer to it."""

import httpcore2
import pytest

from adapter.upstream.joined import Joined


class Wire(httpcore2.AsyncNetworkBackend, httpcore2.AsyncNetworkStream):
    """A network whose only stream notes what it is asked; `broken`: writing fails."""

    def __init__(self, broken: bool = False) -> None:
        self.broken = broken
        self.log: list[bytes] = []

    async def connect_tcp(self, *_, **__):
        return self

    async def write(self, buffer, _timeout=None):
        self.log.append(buffer)
        if self.broken:
            raise httpcore2.WriteError

    async def read(self, _max_bytes, _timeout=None):
        self.log.append(b"read")
        return b"answer"


@pytest.mark.parametrize("broken", [False, True])
async def test_what_is_written_leaves_at_once_before_the_first_read(broken):
    wire = Wire(broken)
    stream = await Joined(wire).connect_tcp("host", 80)
    for _ in range(2):
        await stream.write(b"head ")
        await stream.write(b"body")
        assert await stream.read(10) == b"answer"
        assert await stream.read(10) == b"answer"
    assert wire.log == [b"head body", b"read", b"read"] * 2
