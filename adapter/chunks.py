"""Chunks: the events of a streamed answer as the Python client reads them."""

import codecs
import json
import math
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass, replace
from typing import Any

from adapter.answers import AnswerUsage
from adapter.candidates import END, END_NAME, Alternative, Label, Step, Usage, Verdict
from adapter.errors import AdapterError, ServiceError


@dataclass(frozen=True, slots=True)
class Chunk:
    """One event of a stream."""

    text: str = ""
    steps: tuple[Step, ...] = ()
    flags: frozenset[str] = frozenset()
    finish_reason: str | None = None
    usage: AnswerUsage | None = None
    echo: tuple[Step, ...] = ()
    verdict: Verdict | None = None
    finish: str | None = None

    def updated(self, later: "Chunk") -> "Chunk":
        """What is known of the answer as a whole."""
        return Chunk(
            flags=self.flags | later.flags,
            finish_reason=later.finish_reason or self.finish_reason,
            usage=later.usage or self.usage,
            echo=self.echo or later.echo,
            verdict=later.verdict or self.verdict,
            finish=later.finish or self.finish,
        )


class Steps:
    """Gives each step its text.

    While bytes or characters are held back the newest step waits: what the end of the answer
    still releases belongs to it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = 0
        self._waiting: tuple[Step, ...] = ()

    def feed(self, chunk: Chunk) -> tuple[Step, ...]:
        """The steps that are complete now."""
        if not chunk.steps:
            return self._end(chunk) if chunk.finish_reason else ()
        newest = replace(chunk.steps[-1], text=chunk.text)
        ready = (*self._waiting, *chunk.steps[:-1])
        self._open -= len(chunk.text)
        self._open += sum(len(self._decoder.decode(step.token)) for step in chunk.steps)
        if self._open or self._decoder.getstate()[0]:
            self._waiting = (newest,)
            return ready
        self._waiting = ()
        return (*ready, newest)

    def _end(self, chunk: Chunk) -> tuple[Step, ...]:
        waiting, self._waiting = self._waiting, ()
        return tuple(replace(step, text=step.text + chunk.text) for step in waiting)


@contextmanager
def understood() -> Iterator[None]:
    """Answers in another shape than the service's as ServiceError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise malformed() from error


@understood()
def chunk(data: str) -> Chunk:
    event = json.loads(data)
    if event.get("error"):
        raise error_of(event["error"])
    choice = event["choices"][0] if event["choices"] else {}
    steering = choice.get("steering") or {}
    usage = event.get("usage")
    return Chunk(
        text=choice.get("text") or choice.get("delta", {}).get("content") or "",
        steps=tuple(_step(step) for step in steering.get("steps", ())),
        flags=frozenset(steering.get("flags", ())),
        finish_reason=choice.get("finish_reason"),
        usage=_usage(usage) if usage else None,
        echo=tuple(_step(step) for step in steering.get("echo", ())),
        verdict=_verdict(steering) if "choices" in steering else None,
        finish=steering.get("finish"),
    )


def _verdict(data: Mapping[str, Any]) -> Verdict:
    fields = ("label", "logprob", "upstream_logprob", "offset", "shown")
    labels = (Label(*(told[name] for name in fields)) for told in data["choices"])
    return Verdict(tuple(labels), data["uncertain"])


def _step(data: Mapping[str, Any]) -> Step:
    return Step(
        token=_token(data),
        logprob=data["logprob"],
        upstream_logprob=data["upstream_logprob"],
        offset=data["offset"],
        rank=data["rank"],
        status=data["status"],
        flags=frozenset(data["flags"]),
        source=data["source"],
        special=_special(data),
        shown=tuple(_alternative(shown) for shown in data.get("candidates", ())),
        bounds=_bounds(*data["bounds"]) if "bounds" in data else None,
    )


def _bounds(least: float | None, most: float) -> tuple[float, float]:
    return -math.inf if least is None else least, most


def _alternative(data: Mapping[str, Any]) -> Alternative:
    return Alternative(
        token=_token(data),
        upstream_logprob=data["upstream_logprob"],
        offset=data["offset"],
        logprob=data["logprob"],
        special=_special(data),
    )


def _token(data: Mapping[str, Any]) -> bytes:
    return bytes(data["bytes"] or ())


def _special(data: Mapping[str, Any]) -> str | None:
    """A special token has no bytes, and its class or name instead of a text."""
    if data["bytes"] is not None:
        return None
    return END if data["token"] == END_NAME else str(data["token"])


def _usage(data: Mapping[str, Any]) -> AnswerUsage:
    fields = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    spent = data["upstream"]
    upstream = Usage(*(spent[name] for name in fields))
    tokens = (data["prompt_tokens"], data["completion_tokens"])
    return AnswerUsage(*tokens, upstream, spent.get("cost"), bool(spent.get("estimated")))


def malformed() -> ServiceError:
    """What the service is accused of where its answer makes no sense."""
    message = "the answer is not what an adapter service sends; check the address"
    return ServiceError(message, status=502, code="malformed_answer")


def error_of(told: Mapping[str, Any], status: int | None = None) -> AdapterError:
    """The error that an error object stands for, of the class that goes by its type and code.

    ServiceError where there is none; `status` is the answer's, None inside a stream.
    """
    kind = _kinds(AdapterError).get((told["type"], told["code"]), AdapterError)
    if kind is AdapterError:
        return ServiceError(str(told["message"]), status=status or 500, code=told["code"])
    error = kind.__new__(kind)  # some take more than a message
    AdapterError.__init__(error, str(told["message"]), param=told.get("param"))
    return error


def _kinds(kind: type[AdapterError]) -> dict[tuple[str, str | None], type[AdapterError]]:
    """Every class of error by its type and code."""
    found = {(kind.type, kind.code): kind}
    for narrower in kind.__subclasses__():
        found = _kinds(narrower) | found
    return found
