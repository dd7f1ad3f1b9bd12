"""The demo's stage: two engines and the service, each in a process of its own, on loopback."""

import json
import os
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import AdapterError
from tokenizer_maps.loading import load_vocabulary

WEIGHTS = Path(__file__).parent / "weights"
EXPERT = WEIGHTS / "expert"

STEERED = "almanac"
"""The model name that shows the upstream's top 20, as a hosted API would."""

WHOLE = "almanac-whole"
"""The same model with its whole vocabulary shown: what top-20 costs is the difference."""

_PATIENCE = 30.0
_THREADS = {"OMP_NUM_THREADS": "1", "OMP_WAIT_POLICY": "PASSIVE"}
"""Models this small are slower with more threads, and the engines want the other core."""


@dataclass(frozen=True, slots=True)
class Stage:
    """Base URLs of the hosted model, of the same model truly tuned, and of the service.

    `settings` and `expert` are what the service runs on.
    """

    hosted: str
    tuned: str
    service: str
    settings: Path
    expert: Path


@contextmanager
def stage(expert: Path = EXPERT) -> Iterator[Stage]:
    """All servers of the demo, from entering to leaving. Raises AdapterError where one fails."""
    with (
        tempfile.TemporaryDirectory(prefix="adapter-demo-") as folder,
        Engine(WEIGHTS / "hosted.gguf", EngineOptions(alias="hosted", threads=1)) as hosted,
        Engine(WEIGHTS / "hosted-tuned.gguf", EngineOptions(alias="tuned", threads=1)) as tuned,
    ):
        settings = Path(folder) / "demo.yaml"
        settings.write_text(json.dumps(settings_for(hosted.base_url, expert)))  # JSON is YAML
        with _service(settings) as url:
            yield Stage(hosted.base_url, tuned.base_url, url, settings, expert)


def settings_for(base_url: str, expert: Path = EXPERT) -> dict[str, Any]:
    """The demo's settings: one hosted model under two names, one pair for both."""
    antiexpert = str(WEIGHTS / "antiexpert")
    pair = {"experts": {"news": str(expert.absolute())}, "antiexpert": antiexpert}
    tokenizer = f"hf:{WEIGHTS / 'hosted-tokenizer'}"

    def model(top_logprobs: int) -> dict[str, object]:
        upstream = {
            "base_url": base_url,
            "model": "hosted",
            "api": "llama.cpp",
            "tokenizer": tokenizer,
            "top_logprobs": top_logprobs,
        }
        return {"upstream": upstream, "pair": pair, "alpha": 1.0}

    whole = len(load_vocabulary(tokenizer).tokens)
    return {
        "models": {STEERED: model(20), WHOLE: model(whole)},
        "service": {"port": 0},
        "log": {"level": "warning"},
    }


@contextmanager
def _service(settings: Path) -> Iterator[str]:
    """`adapter serve` on a free port; yields its base URL once it answers."""
    command = [sys.executable, "-m", "adapter.cli", "serve", str(settings)]
    with (
        tempfile.TemporaryFile("w+") as log,
        subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command, stdout=subprocess.PIPE, stderr=log, text=True, env={**os.environ, **_THREADS}
        ) as process,
    ):
        try:
            yield f"{_address(process, log)}/v1"
        finally:
            process.terminate()
            try:
                process.wait(_PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()


def _address(process: subprocess.Popen[str], log: IO[str]) -> str:
    """What the service prints once it is ready for requests."""
    for line in process.stdout or ():
        if "http://" in line:
            return "http://" + line.split("http://")[1].strip()
    process.wait(_PATIENCE)
    log.seek(0)
    raise AdapterError(f"the service did not start: {log.read().strip()[-500:]}")
