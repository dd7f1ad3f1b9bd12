"""llama.cpp's own server in a process of its own, for the demo and for tests.

    with Engine(Path("model.gguf")) as engine:
        ...  # engine.base_url is an OpenAI-compatible API on loopback

The process ends with the one that started it, however that ends.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import threading
import time
from dataclasses import asdict, dataclass
from pathlib import Path
from types import TracebackType
from typing import IO, Any, Self

import httpx

from adapter.errors import AdapterError

_STOP = 5.0


class EngineError(AdapterError):
    """The local engine could not be started."""

    code = "engine_failed"


@dataclass(frozen=True, slots=True)
class EngineOptions:
    """How the engine runs: `context` tokens for each of `slots` requests at a time; port 0 is any.

    The engine rounds a context up to a multiple of 256.
    """

    context: int = 512
    slots: int = 4
    threads: int = 2
    alias: str = "demo"
    host: str = "127.0.0.1"
    port: int = 0


class Engine:
    """A running engine, from entering the context to leaving it; raises EngineError.

    Log-probabilities are within 2e-5 nats of transformers for float32 weights: keys and values
    are kept in float32 and flash attention is off (with the engine's own defaults, 2e-3).
    """

    def __init__(
        self, model: Path, options: EngineOptions | None = None, *, patience: float = 60.0
    ) -> None:
        self._model = model
        self._options = options or EngineOptions()
        self._deadline = patience
        self._process: subprocess.Popen[str] | None = None
        self._log: IO[str] | None = None
        self._address = ""

    @property
    def base_url(self) -> str:
        """Where the OpenAI-compatible API is."""
        return f"{self._address}/v1"

    @property
    def pid(self) -> int | None:
        """The engine's process, None while it does not run."""
        return None if self._process is None else self._process.pid

    def __enter__(self) -> Self:
        if not self._model.is_file():
            raise EngineError(f"there is no model file {self._model}")
        try:
            self._start()
        except BaseException:
            self._stop()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self._stop()

    def _start(self) -> None:
        deadline = time.monotonic() + self._deadline
        self._log = tempfile.TemporaryFile("w+", errors="replace")  # noqa: SIM115 - closed in _stop
        command = [sys.executable, "-m", "adapter.demo.engine", str(self._model)]
        for name, value in asdict(self._options).items():
            command += [f"--{name}", str(value)]
        self._process = subprocess.Popen(  # noqa: S603 - our own interpreter and module
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._log,
            text=True,
        )
        # If the engine hangs while loading, killing it ends the wait for its first line.
        alarm = threading.Timer(self._deadline, self._process.kill)
        alarm.start()
        try:
            self._address = self._first_line(self._process)
        finally:
            alarm.cancel()
        self._wait_until_ready(deadline)

    def _first_line(self, process: subprocess.Popen[str]) -> str:
        line = process.stdout.readline() if process.stdout is not None else ""
        address = json.loads(line).get("address") if line.startswith("{") else None
        if not isinstance(address, str):
            raise EngineError(self._reason())
        return address

    def _wait_until_ready(self, deadline: float) -> None:
        with httpx.Client(trust_env=False, timeout=2.0) as client:
            while not self._healthy(client):
                if self._process is None or self._process.poll() is not None:
                    raise EngineError(self._reason())
                if time.monotonic() > deadline:
                    raise EngineError(f"the engine was not ready within {self._deadline:g} s")
                time.sleep(0.02)

    def _healthy(self, client: httpx.Client) -> bool:
        try:
            return client.get(f"{self._address}/health").status_code == 200
        except httpx.TransportError:
            return False

    def _reason(self) -> str:
        """What the engine last said before it gave up."""
        if self._process is not None:
            self._process.wait(_STOP)
        said = ""
        if self._log is not None:
            self._log.seek(0)
            said = self._log.read()
        if "No module named 'xllamacpp'" in said:
            return "the engine is not installed: pip install 'proxytune-adapter[demo]'"
        last = said.strip().rsplit("\n", 1)[-1][:300]
        return f"the engine did not start with {self._model}: {last or 'it gave no reason'}"

    def _stop(self) -> None:
        process, self._process = self._process, None
        if process is not None:
            process.kill()
            process.communicate()
        if self._log is not None:
            self._log.close()
            self._log = None


def serve(model: str, options: EngineOptions) -> None:
    """Run the engine in this process until standard input closes, that is, the parent is gone.

    The first line on standard output is a JSON object with its address.
    """
    import xllamacpp

    server = xllamacpp.Server(_parameters(xllamacpp, model, options))
    sys.stdout.write(json.dumps({"address": server.listening_address}) + "\n")
    sys.stdout.flush()
    sys.stdin.read()
    os._exit(0)  # the server's threads would keep the process alive


def _parameters(engine: Any, model: str, options: EngineOptions) -> Any:
    parameters = engine.CommonParams()
    parameters.model.path = model
    parameters.model_alias = [options.alias]
    parameters.hostnames = [options.host]
    parameters.port = options.port
    parameters.n_parallel = options.slots
    parameters.n_ctx = options.context * options.slots  # the engine divides it among the slots
    parameters.cpuparams.n_threads = options.threads
    parameters.cpuparams_batch.n_threads = options.threads
    parameters.cache_type_k = parameters.cache_type_v = engine.ggml_type.GGML_TYPE_F32
    parameters.flash_attn_type = engine.llama_flash_attn_type.LLAMA_FLASH_ATTN_TYPE_DISABLED
    parameters.verbosity = 1  # errors; above that it writes a kilobyte a request
    parameters.ui = False
    parameters.endpoint_slots = False  # it shows the prompts of others
    return parameters


def main(arguments: list[str] | None = None) -> None:
    """The command line of the engine's own process."""
    parser = argparse.ArgumentParser(description=serve.__doc__)
    parser.add_argument("model")
    defaults = asdict(EngineOptions())
    for name, value in defaults.items():
        parser.add_argument(f"--{name}", type=type(value), default=value)
    given = vars(parser.parse_args(arguments))
    serve(given.pop("model"), EngineOptions(**given))


if __name__ == "__main__":
    main()
