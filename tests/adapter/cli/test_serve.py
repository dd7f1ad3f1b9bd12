"""adapter serve as a process of its own."""

import asyncio
import json
import signal
import socket
import subprocess
import sys
import threading
import time
from concurrent.futures import ThreadPoolExecutor

import httpx
import pytest

from adapter.cli.serve import _bind
from tests.support.counts import count

COMMAND = [sys.executable, "-c", "from adapter.cli import main; main()"]
SETTINGS = """
models:
  m:
    upstream: {base_url: "http://127.0.0.1:9/v1", model: m, tokenizer: "tiktoken:cl100k_base"}
    pair: {experts: {e: org/e}, antiexpert: org/a}
"""
SCRIPTED = """
import adapter.adapter
from tests.support.scripted_adapter import ScriptedAdapter
adapter.adapter.Adapter.from_settings = lambda settings: ScriptedAdapter()
from adapter.cli import main
main()
"""
WAIT = 30

STOPPING = """
import asyncio, gc, sys
import adapter.adapter
import adapter.service.server
from tests.support.scripted_adapter import ScriptedAdapter, ending, step

class Slow(ScriptedAdapter):
    async def run(self, job, choice=0):
        print("runs settled" if gc.get_freeze_count() else "runs", flush=True)
        yield step("Hi")
        await asyncio.sleep(1 if job.request.sampling.max_tokens == 1 else 3600)
        yield ending()

adapter.service.server._LAST_ANSWERS = float(sys.argv.pop(1))
adapter.adapter.Adapter.from_settings = lambda settings: Slow()
from adapter.cli import main
main()
"""


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "adapter.yaml"
    path.write_text(SETTINGS)
    return str(path)


def fails(*words: str) -> tuple[int, str]:
    done = subprocess.run([*COMMAND, *words], capture_output=True, text=True, timeout=WAIT)
    assert done.stdout == ""
    assert "Traceback" not in done.stderr
    return done.returncode, done.stderr


@pytest.mark.parametrize(
    ("stop", "form"), [(signal.SIGINT, "text"), (signal.SIGTERM, "json")], ids=["int", "term"]
)
def test_it_says_its_address_serves_and_stops(file, monkeypatch, stop, form):
    monkeypatch.setenv("ADAPTER_LOG__FORMAT", form)
    command = [sys.executable, "-c", SCRIPTED, "serve", file, "--port", "0"]
    with subprocess.Popen(command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True) as it:
        line = it.stdout.readline()
        assert line.startswith("adapter listens on http://127.0.0.1:")
        response = httpx.get(line.split()[-1] + "/v1/models")
        assert [model["id"] for model in response.json()["data"]] == ["m", "org/other"]
        it.send_signal(stop)
        _, log = it.communicate(timeout=WAIT)
        assert it.returncode == 0
        assert "Traceback" not in log
        *lines, last = log.splitlines()
        assert last == "adapter: stopped"
        assert any("GET /v1/models" in line for line in lines)
        if form == "json":
            assert {json.loads(line)["level"] for line in lines} == {"INFO"}


def test_settings_that_are_wrong(file, tmp_path):
    assert fails("serve", str(tmp_path / "none.yaml"))[0] == 1
    assert fails("serve", file, "--host", "0.0.0.0") == (  # noqa: S104
        1,
        "adapter: service: host '0.0.0.0' lets others in and there are no keys; "
        "use 127.0.0.1, set keys, or set service.insecure: true\n",
    )
    assert fails("serve", file, "--port", "70000")[0] == 1
    assert fails("serve")[0] == 2


def test_answers_are_sent_without_waiting_for_acknowledgements():
    """Connections take the protocol from the listening socket, and asyncio asks it of them."""

    async def nodelay() -> int:
        accepted = asyncio.Queue[int]()

        async def handle(_, writer):
            connection = writer.get_extra_info("socket")
            await accepted.put(connection.getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY))
            writer.close()

        with _bind("127.0.0.1", 0) as listening:
            async with await asyncio.start_server(handle, sock=listening):
                _, client = await asyncio.open_connection(*listening.getsockname())
                client.close()
                return await accepted.get()

    assert asyncio.run(nodelay()) != 0


def test_a_port_in_use(file):
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        code, err = fails("serve", file, "--port", str(port))
    assert (code, err.count("\n")) == (1, 1)
    assert err.startswith(f"adapter: cannot listen on 127.0.0.1:{port}: Address already in use")


def test_help_is_quick_and_carries_examples():
    for words in (["--help"], ["serve", "--help"], ["complete", "--help"]):
        code = (
            "import sys\nfrom adapter.cli import app\n"
            f"app({words!r}, standalone_mode=False)\n"
            "assert not {'torch', 'transformers', 'fastapi'} & set(sys.modules)\n"
        )
        done = subprocess.run(
            [sys.executable, "-c", code], capture_output=True, text=True, timeout=WAIT
        )
        assert done.returncode == 0, done.stderr
        assert ("Example" in done.stdout) == (words != ["--help"])


@pytest.mark.reliability("E5")
def test_stopping_leaves_nobody_without_a_word(file, measured):
    """Of 50 streams and 12 plain requests half end by themselves in time, and half would never.

    Together they are fewer than the service answers at once.
    """
    patience = count(20)
    command = [sys.executable, "-c", STOPPING, str(patience), "serve", file, "--port", "0"]
    with (
        open(file + ".log", "w+") as log,
        subprocess.Popen(command, stdout=subprocess.PIPE, stderr=log, text=True) as it,
    ):
        url = f"{it.stdout.readline().split()[-1]}/v1/completions"
        begun = threading.Barrier(51)

        def body(number: int) -> dict:
            return {"model": "m", "prompt": "p", "max_tokens": 1 + number % 2}

        def stream(number: int) -> str:
            asked = body(number) | {"stream": True}
            with httpx.stream("POST", url, json=asked, timeout=2 * WAIT) as answer:
                chunks = answer.iter_text()
                first = next(chunks)
                begun.wait(WAIT)
                return first + "".join(chunks)

        def plain(number: int) -> httpx.Response:
            return httpx.post(url, json=body(number), timeout=2 * WAIT)

        with ThreadPoolExecutor(62) as pool:
            answers = [pool.submit(plain, number) for number in range(12)]
            streams = [pool.submit(stream, number) for number in range(50)]
            begun.wait(WAIT)
            assert {it.stdout.readline() for _ in range(62)} == {"runs settled\n"}
            it.send_signal(signal.SIGTERM)
            told = time.monotonic()
            texts = [stream.result(2 * WAIT) for stream in streams]
            wholes = [answer.result(2 * WAIT) for answer in answers]
        it.wait(2 * WAIT)
        took = time.monotonic() - told
        log.seek(0)
        assert "Traceback" not in log.read()
    lasts = [json.loads(t.strip().rpartition("data: ")[2]) for t in texts[1::2]]
    assert all(text.endswith("data: [DONE]\n\n") for text in texts[::2])
    assert [last["error"]["code"] for last in lasts] == ["service_stopping"] * 25
    assert [answer.json()["choices"][0]["text"] for answer in wholes[::2]] == ["Hi"] * 6
    for answer in wholes[1::2]:
        assert (answer.status_code, answer.headers["retry-after"]) == (503, "1")
        assert answer.headers["x-should-retry"] == "true"
        assert answer.json()["error"].keys() == {"message", "type", "param", "code"}
        assert answer.json()["error"]["code"] == "service_stopping"
    assert it.returncode == 0
    measured(
        f"50 streams and 12 plain requests, {patience} s to end",
        f"31 finished, 25 error events, 6 times 503, exit 0 after {took:.1f} s",
        met=took <= 30,
    )
