"""A loopback proxy that makes every request arrive later, as a network would."""

import asyncio
import contextlib
import threading
from collections.abc import Iterator
from urllib.parse import urlsplit


@contextlib.contextmanager
def delayed(base_url: str, seconds: float) -> Iterator[str]:
    """The base URL of a proxy in front of a server; what is sent to it is passed on later."""
    target = urlsplit(base_url)
    loop, ready, address = asyncio.new_event_loop(), threading.Event(), []
    stop = asyncio.Event()

    async def handle(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            upstream = await asyncio.open_connection(target.hostname, target.port)
        except OSError:
            writer.close()
            return
        with contextlib.suppress(asyncio.CancelledError):  # at the end of it all
            await asyncio.gather(
                _later(reader, upstream[1], seconds), _later(upstream[0], writer, 0.0)
            )

    async def run() -> None:
        server = await asyncio.start_server(handle, "127.0.0.1", 0)
        address.append(server.sockets[0].getsockname()[1])
        ready.set()
        await stop.wait()
        server.close()
        running = asyncio.all_tasks() - {asyncio.current_task()}
        for task in running:
            task.cancel()
        await asyncio.gather(*running, return_exceptions=True)

    thread = threading.Thread(target=loop.run_until_complete, args=(run(),), daemon=True)
    thread.start()
    ready.wait()
    try:
        yield f"http://127.0.0.1:{address[0]}{target.path}"
    finally:
        loop.call_soon_threadsafe(stop.set)
        thread.join()


async def _later(
    reader: asyncio.StreamReader, writer: asyncio.StreamWriter, seconds: float
) -> None:
    """Pass bytes on in their order, each `seconds` after it came; the end as well."""
    loop, due = asyncio.get_running_loop(), asyncio.Queue[tuple[float, bytes]]()

    async def receive() -> None:
        data = b"-"
        while data:
            try:
                data = await reader.read(1 << 16)
            except ConnectionError:
                data = b""
            due.put_nowait((loop.time() + seconds, data))

    receiving = asyncio.create_task(receive())
    with contextlib.suppress(ConnectionError):
        while True:
            when, data = await due.get()
            await asyncio.sleep(when - loop.time())
            if not data:
                break
            writer.write(data)
            await writer.drain()
    receiving.cancel()
    writer.close()
