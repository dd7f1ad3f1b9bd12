"""Server-sent events, as far as completions use them."""

from collections.abc import AsyncIterable, AsyncIterator


async def payloads(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    r"""The data of each event, from bytes cut anywhere; an event that never ends is left out.

    Lines end at \n or \r\n and nowhere else: JSON may hold U+2028 and other breaks as they are.
    """
    data: list[bytes] = []
    async for line in _lines(chunks):
        if line.startswith(b"data:"):
            data.append(line[5:].removeprefix(b" "))
        elif not line and data:
            yield b"\n".join(data)
            data = []


async def _lines(chunks: AsyncIterable[bytes]) -> AsyncIterator[bytes]:
    begun = bytearray()
    async for chunk in chunks:
        *ended, rest = chunk.split(b"\n")
        for end in ended:
            yield bytes(begun + end).removesuffix(b"\r")
            begun.clear()
        begun += rest
