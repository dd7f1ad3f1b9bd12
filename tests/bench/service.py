"""Service: what it adds to a request that is not steered, beside LiteLLM's proxy in the same run.

The hosted model answers at once from a process of its own; clients keep their connections.
"""

import argparse
import asyncio
import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any
from urllib.parse import urlsplit

import httpx
import numpy as np

from adapter.demo.stage import _service
from tests.bench.stats import header, row
from tests.support.configured import settings_for
from tests.support.sockets import free_port

MODEL = "tiny"
SHOWN = 5
CONNECTIONS = (1, 32)
WARM = 20
LITELLM = {
    "LITELLM_LOCAL_MODEL_COST_MAP": "True",
    "LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true",  # neither side asks for keys
}
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--requests", type=int, default=300, help="of each kind and system")
    parser.add_argument("--tokens", type=int, default=32, help="of the longer requests")
    parser.add_argument("--litellm", type=Path, help="the executable of LiteLLM's proxy")


def run(args: argparse.Namespace) -> Result:
    """All systems are up together and asked in turns, so that all meet the same load."""
    with ExitStack() as stack:
        upstream = stack.enter_context(_canned())
        systems = {"direct": upstream, "adapter": stack.enter_context(_adapter(upstream))}
        if args.litellm:
            systems["LiteLLM"] = stack.enter_context(_litellm(args.litellm, upstream))
        rows = {
            f"{name}, {connections} connections, {tokens} tokens": _measured(
                url, name, tokens, connections, args.requests
            )
            for connections in CONNECTIONS
            for tokens in (1, args.tokens)
            for name, url in systems.items()
        }
    result: Result = {"rows": rows, "tokens": args.tokens}
    added = _added(rows, "adapter", 1, args.tokens)
    result["overhead_ms"] = added / args.tokens
    result["overhead_request_ms"] = _added(rows, "adapter", 1, 1)
    if args.litellm:
        result["overhead_vs_litellm"] = result["overhead_request_ms"] / _added(
            rows, "LiteLLM", 1, 1
        )
    return result


def report(result: Result) -> str:
    """Tables for the documents."""
    lines = header("system", "p50 ms", "p99 ms", "requests/s")
    for name, found in result["rows"].items():
        lines.append(
            row(name, f"{found['p50']:.2f}", f"{found['p99']:.2f}", f"{found['rate']:.0f}")
        )
    lines += ["", *header("measure", "value", "goal")]
    lines.append(row("overhead_ms (a token)", f"{result['overhead_ms']:.3f}", "≤ 1"))
    lines.append(row("overhead_request_ms", f"{result['overhead_request_ms']:.2f}", ""))
    if "overhead_vs_litellm" in result:
        lines.append(row("overhead_vs_litellm", f"{result['overhead_vs_litellm']:.3f}", "≤ 0.2"))
    return "\n".join(lines)


def _added(rows: Result, system: str, connections: int, tokens: int) -> float:
    """Milliseconds over calling the hosted model directly, at the median."""
    where = f"{connections} connections, {tokens} tokens"
    return float(rows[f"{system}, {where}"]["p50"] - rows[f"direct, {where}"]["p50"])


def _measured(url: str, name: str, tokens: int, connections: int, requests: int) -> Result:
    body: Result = {
        "model": MODEL, "prompt": "The harbour", "max_tokens": tokens, "temperature": 0,
        "logprobs": SHOWN,
    }  # fmt: skip
    if name == "adapter":
        body["steering"] = {"alpha": 0, "lookahead": tokens}
    if name == "direct":
        body["logprobs"] = 20  # as the adapter asks it
    at = urlsplit(url)
    data = json.dumps(body).encode()
    request = (
        f"POST {at.path}/completions HTTP/1.1\r\nhost: {at.netloc}\r\n"
        f"content-type: application/json\r\ncontent-length: {len(data)}\r\n\r\n"
    ).encode() + data
    asyncio.run(_load(str(at.hostname), at.port or 0, request, [WARM] * min(4, connections)))
    each = [requests // connections + 1] * connections
    start = time.perf_counter()
    taken = asyncio.run(_load(str(at.hostname), at.port or 0, request, each))
    rate = len(taken) / (time.perf_counter() - start)
    p50, p99 = np.percentile(taken, [50, 99])
    return {"p50": float(p50), "p99": float(p99), "rate": rate}


async def _load(host: str, port: int, request: bytes, each: Sequence[int]) -> list[float]:
    """Milliseconds of every request, sent one after the other on each connection."""
    taken = await asyncio.gather(*(_connection(host, port, request, count) for count in each))
    return [ms for one in taken for ms in one]


async def _connection(host: str, port: int, request: bytes, count: int) -> list[float]:
    reader, writer = await asyncio.open_connection(host, port)
    taken = []
    for _ in range(count):
        start = time.perf_counter()
        writer.write(request)
        head = (await reader.readuntil(b"\r\n\r\n")).lower()
        body = await reader.readexactly(int(head.split(b"content-length:")[1].split(b"\r\n")[0]))
        taken.append(1e3 * (time.perf_counter() - start))
        if not head.startswith(b"http/1.1 200"):
            raise RuntimeError(f"a system answered {body[:300]!r}")
    writer.close()
    await writer.wait_closed()
    return taken


@contextmanager
def _canned() -> Iterator[str]:
    command = [sys.executable, "-m", "tests.bench.canned"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield (process.stdout or sys.stdin).readline().strip()
        finally:
            process.terminate()


@contextmanager
def _adapter(upstream: str) -> Iterator[str]:
    """The service as `adapter serve` runs it, without a cache."""
    settings = settings_for(
        upstream,
        model="m",
        cache={"url": "none"},
        service={"port": 0, "max_concurrency": 2 * max(CONNECTIONS)},
    ).model_dump(mode="json")
    settings["log"] = {"level": "warning"}
    with tempfile.TemporaryDirectory() as folder:
        file = Path(folder) / "bench.yaml"
        file.write_text(json.dumps(settings))
        with _service(file) as url:
            yield url


@contextmanager
def _litellm(program: Path, upstream: str) -> Iterator[str]:
    """LiteLLM's proxy in front of the same model, one worker as well."""
    model = {"model": "text-completion-openai/m", "api_base": upstream, "api_key": "none"}
    config = {"model_list": [{"model_name": MODEL, "litellm_params": model}]}
    with tempfile.TemporaryDirectory() as folder:
        file, port = Path(folder) / "litellm.yaml", free_port()
        file.write_text(json.dumps(config))
        command = [str(program), "--config", str(file), "--port", str(port), "--num_workers", "1"]
        environment = {**os.environ, **LITELLM}
        environment.pop("PYTHONPATH", None)
        with subprocess.Popen(
            [*command, "--host", "127.0.0.1"],
            stdout=subprocess.DEVNULL,
            stderr=subprocess.DEVNULL,
            env=environment,
            cwd=folder,
        ) as process:
            try:
                _until_up(f"http://127.0.0.1:{port}/health/liveliness", process)
                yield f"http://127.0.0.1:{port}/v1"
            finally:
                process.terminate()


def _until_up(url: str, process: "subprocess.Popen[bytes]") -> None:
    """Wait for a server, four minutes at most."""
    end = time.monotonic() + 240
    while time.monotonic() < end and process.poll() is None:
        try:
            if httpx.get(url, timeout=5).status_code == 200:
                return
        except httpx.HTTPError:
            time.sleep(0.5)
    raise RuntimeError("LiteLLM's proxy did not start")
