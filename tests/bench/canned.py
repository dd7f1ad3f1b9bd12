"""A hosted model that costs nothing: answers every completion at once, in a process of its own.

``python -m tests.bench.canned`` prints its base URL.
"""

import asyncio
import contextlib
import json
import sys
from functools import cache

_FIRST = 50
_LOGPROB = -0.1


@cache
def answer(tokens: int, shown: int) -> bytes:
    """A whole HTTP answer in vLLM's shape, of so many tokens with so many candidates each."""
    top = {f"token_id:{_FIRST + i}": _LOGPROB - 3.0 - i for i in range(1, shown)}
    name = f"token_id:{_FIRST}"
    logprobs = {
        "tokens": [name] * tokens,
        "token_logprobs": [_LOGPROB] * tokens,
        "top_logprobs": [{name: _LOGPROB} | top] * tokens,
        "text_offset": list(range(tokens)),
    }
    choice = {"index": 0, "text": "", "finish_reason": "length", "logprobs": logprobs}
    body = {
        "id": "cmpl-0",
        "object": "text_completion",
        "created": 1,
        "model": "m",
        "choices": [choice],
        "usage": {"prompt_tokens": 3, "completion_tokens": tokens, "total_tokens": 3 + tokens},
    }
    data = json.dumps(body).encode()
    head = b"HTTP/1.1 200 OK\r\ncontent-type: application/json\r\ncontent-length: %d\r\n\r\n"
    return head % len(data) + data


async def _handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    with contextlib.suppress(asyncio.IncompleteReadError, ConnectionError):
        while True:
            head = (await reader.readuntil(b"\r\n\r\n")).lower()
            if head.startswith(b"get "):  # what is there is nobody's business
                writer.write(b"HTTP/1.1 404 Not Found\r\ncontent-length: 0\r\n\r\n")
                continue
            length = int(head.split(b"content-length:")[1].split(b"\r\n")[0])
            asked = json.loads(await reader.readexactly(length))
            writer.write(answer(asked["max_tokens"], asked.get("logprobs") or 1))
            await writer.drain()
    writer.close()


async def _serve() -> None:
    server = await asyncio.start_server(_handle, "127.0.0.1", 0)
    port = server.sockets[0].getsockname()[1]
    sys.stdout.write(f"http://127.0.0.1:{port}/v1\n")
    sys.stdout.flush()
    await server.serve_forever()


if __name__ == "__main__":
    asyncio.run(_serve())
