"""An upstream that answers by a script, on a real socket: for faults no real server will stage."""

import asyncio
import contextlib
import json
import socket
import ssl
import struct
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, Literal

Json = dict[str, Any]


@dataclass(frozen=True)
class Reply:
    """One answer: `body` bytes as they are, anything else as JSON.

    `silent`: no answer at all. `cut`: that many bytes of the body, then the end of the
    connection. `stall`: that many bytes, then nothing more. `more`: the length promises more.
    `late`: seconds before the first byte. `drip`: seconds before each byte of the body.
    `gone`: the connection ends instead, cleanly or not.
    """

    status: int = 200
    body: Any = b""
    headers: Mapping[str, str] = field(default_factory=dict)
    silent: bool = False
    cut: int | None = None
    stall: int | None = None
    more: bool = False
    late: float = 0.0
    drip: float = 0.0
    gone: Literal["closed", "reset"] | None = None

    @property
    def payload(self) -> bytes:
        return self.body if isinstance(self.body, bytes) else json.dumps(self.body).encode()


@dataclass
class Scripted:
    """A running script: the last reply is repeated; `requests` and `headers` are as received.

    `connections` are counted when they are opened; `most` is how many requests were answered at
    once at most.
    """

    replies: list[Reply]
    address: str = ""
    requests: list[Json] = field(default_factory=list)
    headers: list[dict[str, str]] = field(default_factory=list)
    connections: int = 0
    open: int = 0
    most: int = 0

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    @property
    def calls(self) -> int:
        """How many requests have arrived, exactly."""
        return len(self.requests)

    async def handle(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self.connections += 1
        try:
            while await self._exchange(reader, writer):
                pass
        except (asyncio.IncompleteReadError, asyncio.CancelledError, ConnectionError):
            pass
        finally:
            writer.close()
            with contextlib.suppress(ConnectionError):
                await writer.wait_closed()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        headers = _headers(await reader.readuntil(b"\r\n\r\n"))
        body = await reader.readexactly(int(headers.get("content-length", "0")))
        reply = self.replies[min(self.calls, len(self.replies) - 1)]
        self.headers.append(headers)
        self.requests.append(json.loads(body))
        self.open += 1
        self.most = max(self.most, self.open)
        try:
            return await _send(reply, writer)
        finally:
            self.open -= 1


@contextlib.contextmanager
def scripted(*replies: Reply, tls: ssl.SSLContext | None = None) -> Iterator[Scripted]:
    """A scripted upstream that listens on a free loopback port."""
    script = Scripted(list(replies))
    ready, loop = threading.Event(), asyncio.new_event_loop()
    stop = asyncio.Event()

    async def run() -> None:
        server = await asyncio.start_server(script.handle, "127.0.0.1", 0, ssl=tls)
        kind = "http" if tls is None else "https"
        script.address = f"{kind}://127.0.0.1:{server.sockets[0].getsockname()[1]}"
        ready.set()
        await stop.wait()
        server.close()
        pending = asyncio.all_tasks() - {asyncio.current_task()}
        for task in pending:
            task.cancel()
        await asyncio.gather(*pending, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    ready.wait(10)
    try:
        yield script
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join(10)
        loop.close()


def classic(*steps: Mapping[str, float], text: str = "", finish: str = "length") -> Json:
    """A /v1/completions answer in vLLM's shape; each step's first key is the sampled token."""
    tokens = [next(iter(step)) for step in steps]
    return {
        "choices": [
            {
                "index": 0,
                "text": text,
                "finish_reason": finish,
                "logprobs": {
                    "text_offset": [0] * len(steps),
                    "tokens": tokens,
                    "token_logprobs": [
                        step[token] for step, token in zip(steps, tokens, strict=True)
                    ],
                    "top_logprobs": list(steps),
                },
            }
        ],
        "usage": {"prompt_tokens": 3, "completion_tokens": len(steps)},
    }


def events(*bodies: Any, done: bool = True, **changes: Any) -> Reply:
    """A stream of events, each of them an answer's JSON."""
    data = b"".join(b"data: %b\n\n" % json.dumps(body).encode() for body in bodies)
    headers = {"content-type": "text/event-stream"}
    return Reply(body=data + b"data: [DONE]\n\n" * done, headers=headers, **changes)


def native(*steps: Sequence[tuple[int, bytes, float]], finish: str = "length") -> Json:
    """A /v1/completions answer in llama.cpp's shape; each step's first entry is the sampled one."""
    entries = [
        [{"id": i, "token": "", "bytes": list(spelt), "logprob": p} for i, spelt, p in step]
        for step in steps
    ]
    content = [entry[0] | {"top_logprobs": entry} for entry in entries]
    return {
        "choices": [
            {
                "index": 0,
                "text": "x",
                "finish_reason": finish,
                "logprobs": {"content": content} if content else None,
            }
        ],
        "usage": {
            "prompt_tokens": 3,
            "completion_tokens": len(steps),
            "prompt_tokens_details": {"cached_tokens": 2},
        },
    }


async def _send(reply: Reply, writer: asyncio.StreamWriter) -> bool:
    """Send a reply; False where the connection has to end with it."""
    await asyncio.sleep(3600 if reply.silent else reply.late)
    if reply.gone == "reset":
        linger = struct.pack("ii", 1, 0)
        writer.get_extra_info("socket").setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, linger)
    if reply.gone is not None:
        return False
    lines = [f"HTTP/1.1 {reply.status} X", f"content-length: {len(reply.payload) + reply.more}"]
    lines += [f"{name}: {value}" for name, value in reply.headers.items()]
    head = "\r\n".join([*lines, "", ""]).encode()
    body = reply.payload[: reply.stall if reply.cut is None else reply.cut]
    if reply.drip:
        writer.write(head)
        for at in range(len(body)):
            await asyncio.sleep(reply.drip)
            writer.write(body[at : at + 1])
    else:
        writer.write(head + body)
    await writer.drain()
    if reply.stall is not None:
        await asyncio.sleep(3600)
    return reply.cut is None


def _headers(raw: bytes) -> dict[str, str]:
    lines = raw.decode("latin-1").split("\r\n")[1:]
    pairs = (line.partition(":") for line in lines if line)
    return {name.lower(): value.strip() for name, _, value in pairs}
