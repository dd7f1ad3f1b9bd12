"""An adapter that plays a script: only for wire shapes and for faults in the middle of an answer.

Everything about steering is tested on real models elsewhere; nothing here computes anything.
"""

import asyncio
import threading
from collections.abc import AsyncGenerator, Sequence
from dataclasses import dataclass, field

from adapter.budget import Budget
from adapter.candidates import END, Alternative, Ending, Step, Usage
from adapter.errors import ModelNotFound
from adapter.local import InProcess
from adapter.metrics import Metrics
from adapter.request import Request
from adapter.settings import KeySettings, LimitSettings
from adapter.upstream.lookups import Lookups
from tests.support.generations import byte_vocabulary
from tokenizer_maps.vocabulary import Vocabulary

HANG = "hang"
"""In a script: wait for ever."""

USAGE = Usage(calls=2, prompt_tokens=9, cached_tokens=4, completion_tokens=2)


def step(token: bytes | str, text: str | None = None, **changes) -> Step:
    """A step of plain text that releases itself."""
    token = token.encode() if isinstance(token, str) else token
    values = {
        "token": token,
        "logprob": -0.5,
        "upstream_logprob": -1.5,
        "offset": 1.0,
        "rank": 0,
        "status": "truncated",
        "flags": frozenset(),
        "source": "upstream",
        "text": token.decode(errors="ignore") if text is None else text,
    }
    return Step(**(values | changes))


def end_step() -> Step:
    return step(b"", special=END)


def alternative(token: bytes | str, logprob: float, special: str | None = None) -> Alternative:
    token = token.encode() if isinstance(token, str) else token
    return Alternative(token, logprob - 1.0, 1.0, logprob, special)


def ending(reason: str = "stop", text: str = "", **changes) -> Ending:
    return Ending(reason, text, USAGE, **changes)


Event = Step | Ending | Exception | str
HELLO: tuple[Event, ...] = (step("Hi"), step(" there", rank=2), end_step(), ending())


@dataclass(frozen=True)
class ScriptedJob:
    request: Request
    alpha: float
    prompt_tokens: int
    rough: bool = False
    lookups: Lookups = field(default_factory=Lookups)


@dataclass
class ScriptedAdapter:
    """Plays `script` for every choice; `refusal` is raised by prepare.

    `asked` are the prepared requests; `running` and `cancelled` are set when a run began and when
    one was ended from outside.
    """

    script: Sequence[Event] = HELLO
    refusal: Exception | None = None
    asked: list[Request] = field(default_factory=list)
    running: threading.Event = field(default_factory=threading.Event)
    cancelled: threading.Event = field(default_factory=threading.Event)
    closed: bool = False

    models: tuple[str, ...] = ("m", "org/other")
    limits = LimitSettings(top_logprobs=5, max_tokens=100)
    metrics: Metrics = field(default_factory=lambda: Metrics({}))

    def budget(self, model: str, prompts: int = 1, key: KeySettings | None = None) -> Budget:
        return Budget(prompts)

    def vocabulary(self, model: str) -> Vocabulary:
        if model not in self.models:
            raise ModelNotFound("no such model", param="model")
        return byte_vocabulary()

    def prepare(self, request: Request, budget: Budget | None = None) -> ScriptedJob:
        if self.refusal is not None:
            raise self.refusal
        if request.model not in self.models:
            raise ModelNotFound("no such model", param="model")
        self.asked.append(request)
        return ScriptedJob(request, 1.0 if request.alpha is None else request.alpha, 5)

    async def run(self, job: ScriptedJob, choice: int = 0) -> AsyncGenerator[Step | Ending, None]:
        self.running.set()
        try:
            for event in self.script:
                if isinstance(event, Exception):
                    raise event
                if event == HANG:
                    await asyncio.Event().wait()
                yield event
        except (asyncio.CancelledError, GeneratorExit):
            self.cancelled.set()
            raise

    async def close(self) -> None:
        self.closed = True


@dataclass
class ScriptedLocal(InProcess):
    """A scripted adapter asked in process."""

    script: ScriptedAdapter

    @property
    def _engine(self) -> ScriptedAdapter:
        return self.script

    async def __aenter__(self) -> "ScriptedLocal":
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.script.close()
