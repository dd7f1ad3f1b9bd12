"""The engine's process: ready when entered, gone when left, gone with its parent."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import httpx
import pytest

from adapter.demo.engine import Engine, EngineError, EngineOptions
from tests.support.tiny import tiny

pytestmark = pytest.mark.engine

OPTIONS = EngineOptions(context=256, slots=3, threads=1, alias="mine")


def alive(pid: int) -> bool:
    try:
        os.kill(pid, 0)
    except ProcessLookupError:
        return False
    return True


def test_serves_and_goes() -> None:
    with Engine(tiny().gguf, OPTIONS) as engine:
        pid = engine.pid
        assert pid is not None
        assert alive(pid)
        models = httpx.get(f"{engine.base_url}/models").json()
        assert models["data"][0]["id"] == "mine"
        body = {"prompt": [5] * 255, "max_tokens": 1}
        assert httpx.post(f"{engine.base_url}/completions", json=body).status_code == 200
        body["prompt"] = [5] * 257
        assert httpx.post(f"{engine.base_url}/completions", json=body).status_code == 400
    assert not alive(pid)
    assert engine.pid is None


def test_two_at_a_time() -> None:
    with Engine(tiny().gguf, OPTIONS) as one, Engine(tiny().gguf, OPTIONS) as two:
        assert one.base_url != two.base_url


def test_goes_when_its_parent_is_killed() -> None:
    program = (
        "import time; from pathlib import Path; from adapter.demo.engine import *\n"
        f"with Engine(Path({str(tiny().gguf)!r}), EngineOptions(threads=1)) as engine:\n"
        "    print(engine.pid, flush=True); time.sleep(60)\n"
    )
    environment = os.environ | {"PYTHONPATH": str(Path(__file__).parents[2])}
    with subprocess.Popen(
        [sys.executable, "-c", program], stdout=subprocess.PIPE, text=True, env=environment
    ) as parent:
        assert parent.stdout is not None
        pid = int(parent.stdout.readline())
        assert alive(pid)
        parent.send_signal(signal.SIGKILL)
    deadline = time.monotonic() + 10
    while alive(pid) and time.monotonic() < deadline:
        time.sleep(0.01)
    assert not alive(pid)


def test_says_why_it_did_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(EngineError, match="no model file"), Engine(tmp_path / "none.gguf"):
        pass
    junk = tmp_path / "junk.gguf"
    junk.write_bytes(b"not a model")
    with pytest.raises(EngineError, match=r"did not start with .*junk\.gguf"), Engine(junk):
        pass
    (tmp_path / "xllamacpp.py").write_text("raise ImportError(\"No module named 'xllamacpp'\")")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    with pytest.raises(EngineError, match=r"pip install 'proxytune-adapter\[demo\]'"), Engine(junk):
        pass


def test_is_not_waited_for_without_end(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "xllamacpp.py").write_text("import time\ntime.sleep(60)\n")
    monkeypatch.setenv("PYTHONPATH", str(tmp_path))
    start = time.monotonic()
    with pytest.raises(EngineError), Engine(tiny().gguf, patience=1.0):
        pass
    assert time.monotonic() - start < 10
