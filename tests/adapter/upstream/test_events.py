"""Server-sent events, however the network cuts them."""

from collections.abc import AsyncIterator

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.upstream.events import payloads


async def read(raw: bytes, *cuts: int) -> list[bytes]:
    async def chunks() -> AsyncIterator[bytes]:
        for start, end in zip((0, *cuts), (*cuts, len(raw)), strict=True):
            yield raw[start:end]

    return [payload async for payload in payloads(chunks())]


@pytest.mark.parametrize(
    ("raw", "expected"),
    [
        (b"data: a\n\ndata: b\n\n", [b"a", b"b"]),
        (b"data: a\r\n\r\ndata: b\r\n\r\n", [b"a", b"b"]),
        (b"data:a\ndata: b\n\n", [b"a\nb"]),
        (b": OPENROUTER PROCESSING\n\nevent: x\nid: 3\ndata: a\n\n", [b"a"]),
        (b"\n\n\n", []),
        (b"data: a\n\ndata: cut off", [b"a"]),
        (b"data: cut off\n", []),
        ("data: \u2028\x85\x0b\n\n".encode(), ["\u2028\x85\x0b".encode()]),
    ],
)
async def test_reads_the_data_of_each_event(raw: bytes, expected: list[bytes]) -> None:
    assert await read(raw) == expected


@given(st.binary(max_size=30), st.lists(st.integers(0, 60), max_size=6))
async def test_cuts_change_nothing(noise: bytes, cuts: list[int]) -> None:
    raw = b"data: " + noise + b"\r\n\r\ndata: {}\n\n"
    within = sorted(min(cut, len(raw)) for cut in cuts)
    assert await read(raw, *within) == await read(raw)
