"""Real servers from other interpreters, all of one tiny model; each takes a while to install.

    python3.11 -m venv l && l/bin/pip install 'llama-cpp-python[server]==0.3.36'  # compiles
    python3.11 -m venv p && p/bin/pip install 'litellm[proxy]==1.106.2'

`tests/support/vllm.py` says how to come by vLLM.
"""

import contextlib
import json
import os
import signal
import subprocess
import tempfile
import time
from collections.abc import Iterator
from pathlib import Path

import httpx

from tests.support.hosted import hosted
from tests.support.sockets import free_port

_PATIENCE = 300.0


@contextlib.contextmanager
def started(command: list[str], health: str, settings: dict[str, str] | None = None) -> Iterator:
    """A server process that answers at a URL; ended with all that it started."""
    with tempfile.TemporaryFile("w+") as log:
        process = subprocess.Popen(
            command,
            env={**os.environ, **(settings or {})},
            stdout=log,
            stderr=subprocess.STDOUT,
            start_new_session=True,
        )
        try:
            _wait(health, process, log)
            yield
        finally:
            process.terminate()
            with contextlib.suppress(subprocess.TimeoutExpired):
                process.wait(30)
            with contextlib.suppress(ProcessLookupError):  # what it started may outlive it
                os.killpg(process.pid, signal.SIGKILL)
            process.wait()


def _wait(url: str, process: subprocess.Popen, log) -> None:
    deadline = time.monotonic() + _PATIENCE
    while time.monotonic() < deadline and process.poll() is None:
        with contextlib.suppress(httpx.HTTPError):
            if httpx.get(url, timeout=5).is_success:
                return
        time.sleep(0.5)
    log.seek(0)
    raise RuntimeError(f"the server did not start: {log.read()[-2000:]}")


@contextlib.contextmanager
def llama_cpp_python(python: str) -> Iterator[str]:
    """The base URL of llama-cpp-python's server."""
    port = free_port()
    command = [python, "-m", "llama_cpp.server", "--model", str(hosted().gguf)]
    command += ["--host", "127.0.0.1", "--port", str(port), "--n_ctx", "512"]
    command += ["--logits_all", "True", "--model_alias", "tiny"]
    base_url = f"http://127.0.0.1:{port}/v1"
    with started(command, f"{base_url}/models"):
        yield base_url


@contextlib.contextmanager
def litellm(python: str, upstream: str) -> Iterator[str]:
    """The base URL of a LiteLLM proxy in front of an upstream of OpenAI's shape."""
    port = free_port()
    routes = {"tiny": "openai/tiny", "text": "text-completion-openai/tiny"}
    routes |= {"hosted": "hosted_vllm/tiny"}
    listed = [
        {
            "model_name": name,
            "litellm_params": {"model": route, "api_base": upstream, "api_key": "none"},
        }
        for name, route in routes.items()
    ]
    settings = {"LITELLM_DANGEROUSLY_PERMIT_WEAK_OR_UNSET_MASTER_KEY": "true"}
    settings |= {"LITELLM_LOCAL_MODEL_COST_MAP": "True"}
    with tempfile.TemporaryDirectory() as folder:
        config = Path(folder) / "config.yaml"
        config.write_text(json.dumps({"model_list": listed}))
        command = [str(Path(python).parent / "litellm"), "--config", str(config)]
        command += ["--host", "127.0.0.1", "--port", str(port), "--telemetry", "False"]
        base_url = f"http://127.0.0.1:{port}/v1"
        with started(command, f"http://127.0.0.1:{port}/health/liveliness", settings):
            yield base_url
