"""What clients get: steps as OpenAI's completions and chat completions.

All log-probabilities are the adapted ones; the upstream's own are in the trace.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from adapter.candidates import END, END_NAME, Alternative, Candidate, Step, Verdict
from adapter.price import NANO
from adapter.request import Trace
from adapter.service.parts import Characters, Part, Tally

Json = dict[str, Any]


@dataclass(frozen=True, slots=True)
class View:
    """What a client asked to see; `logprobs` candidates beside each token, None for none at all."""

    logprobs: int | None
    trace: Trace
    alpha: float

    def shows(self, part: Part) -> bool:
        """Whether a part has anything for this client."""
        hidden = self.logprobs is None and self.trace == "off"
        return bool(part.text or part.ending or not hidden)


@dataclass(frozen=True, slots=True)
class Dialect:
    """How one endpoint writes answers (`whole`) and stream events (`piece`).

    `opening` is the delta that begins each choice of a stream, None where there is none.
    """

    prefix: str
    whole_object: str
    piece_object: str
    whole: Callable[[Part, View], Json]
    piece: Callable[[Part, View], Json]
    opening: Json | None = None


@dataclass(frozen=True, slots=True)
class Envelope:
    """What all messages of one answer have in common."""

    dialect: Dialect
    request_id: str
    created: int
    model: str

    def wrap(self, kind: str, choices: Sequence[Json], **more: Json | None) -> Json:
        return {
            "id": self.dialect.prefix + self.request_id,
            "object": kind,
            "created": self.created,
            "model": self.model,
            "choices": list(choices),
            **more,
        }


def usage(tally: Tally) -> Json:
    """Tokens of the adapted answer, and in `upstream` what it took to make it."""
    upstream, bill = tally.upstream, tally.bill
    return {
        "prompt_tokens": tally.prompt_tokens,
        "completion_tokens": tally.completion_tokens,
        "total_tokens": tally.prompt_tokens + tally.completion_tokens,
        **({"estimated": True} if tally.rough else {}),
        "upstream": {
            "calls": upstream.calls,
            "prompt_tokens": upstream.prompt_tokens,
            "cached_tokens": upstream.cached_tokens,
            "completion_tokens": upstream.completion_tokens,
            "cost": None if bill.nanos is None else bill.nanos / NANO,
            **({"estimated": True} if bill.estimated else {}),
        },
    }


def token_text(token: bytes, special: str | None) -> str:
    """A token for people: its text, `bytes:\\x..` where it is no UTF-8, or a special's name.

    Different tokens never print alike, as they would with U+FFFD.
    """
    if special is not None:
        return END_NAME if special == END else special
    try:
        return token.decode()
    except UnicodeDecodeError:
        return "bytes:" + "".join(f"\\x{byte:02x}" for byte in token)


def trace_step(step: Step, trace: Trace) -> Json:
    """A step as a trace shows it."""
    shown = {"candidates": [_trace_candidate(a) for a in step.shown]}
    return {
        **_token(step),
        "logprob": step.logprob,
        "upstream_logprob": step.upstream_logprob,
        "offset": step.offset,
        "rank": step.rank,
        "status": step.status,
        "flags": sorted(step.flags),
        "source": step.source,
        **({"bounds": [_number(bound) for bound in step.bounds]} if step.bounds else {}),
        **(shown if trace == "candidates" else {}),
    }


def _number(value: float) -> float | None:
    """JSON has no infinity."""
    return value if math.isfinite(value) else None


def _trace_candidate(candidate: Alternative) -> Json:
    return {
        **_token(candidate),
        "upstream_logprob": candidate.upstream_logprob,
        "offset": candidate.offset,
        "logprob": candidate.logprob,
    }


def _token(token: Step | Alternative) -> Json:
    """A special token has no bytes."""
    true_bytes = None if token.special is not None else list(token.token)
    return {"token": token_text(token.token, token.special), "bytes": true_bytes}


def _choice(part: Part, view: View, content: Json, logprobs: Json) -> Json:
    choice = {
        "index": part.index,
        **content,
        "logprobs": logprobs if _has_logprobs(part) and view.logprobs is not None else None,
        "finish_reason": part.ending.finish_reason if part.ending else None,
    }
    steering = _steering(part, view)
    if steering:
        choice["steering"] = steering
    return choice


def _has_logprobs(part: Part) -> bool:
    return bool(part.steps or part.echo)


def _steering(part: Part, view: View) -> Json:
    """The trace, if it was asked for; what a budget or a choice made of the answer in any case."""
    told: Json = {}
    if view.trace != "off":
        told = {
            "alpha": view.alpha,
            "steps": [trace_step(step, view.trace) for step in part.steps],
            "flags": sorted(part.ending.flags) if part.ending else [],
        }
        if part.echo:
            told["echo"] = [trace_step(step, view.trace) for step in part.echo.steps]
    if part.ending and part.ending.out_of_budget:
        told["finish"] = "budget"
    if part.ending and part.ending.verdict:
        told |= _verdict(part.ending.verdict)
    return told


def _verdict(verdict: Verdict) -> Json:
    labels = [
        {
            "label": label.text,
            "logprob": label.logprob,
            "upstream_logprob": label.upstream_logprob,
            "offset": label.offset,
            "shown": label.shown,
        }
        for label in verdict.labels
    ]
    return {"choices": labels, "uncertain": verdict.uncertain}


def _completion(part: Part, view: View) -> Json:
    return _choice(part, view, {"text": part.text}, _classic_logprobs(part, view.logprobs or 0))


def _classic_logprobs(part: Part, count: int) -> Json:
    """Parallel arrays; the taken token is always among the top ones, with the same number.

    Nothing predicts the first token of an echo: its numbers are null.
    """
    echoed: list[Candidate | Step] = [part.echo.first, *part.echo.steps] if part.echo else []
    scored = [*(part.echo.steps if part.echo else ()), *part.steps]
    unscored = [None] if part.echo else []
    characters = Characters()
    return {
        "tokens": [token_text(t.token, t.special) for t in [*echoed, *part.steps]],
        "token_logprobs": [*unscored, *(s.logprob for s in scored)],
        "top_logprobs": [*unscored, *(_top(s, count) for s in scored)],
        "text_offset": [*(characters.before(t.token) for t in echoed), *part.offsets],
    }


def _top(step: Step, count: int) -> dict[str, float]:
    top: dict[str, float] = {}
    for shown in step.shown[:count]:
        top.setdefault(token_text(shown.token, shown.special), shown.logprob)
    return top | {token_text(step.token, step.special): step.logprob}


def _chat(part: Part, view: View) -> Json:
    message = {"role": "assistant", "content": part.text, "refusal": None}
    return _choice(part, view, {"message": message}, _chat_logprobs(part, view.logprobs or 0))


def _chat_delta(part: Part, view: View) -> Json:
    delta = {"content": part.text} if part.text or part.steps else {}
    return _choice(part, view, {"delta": delta}, _chat_logprobs(part, view.logprobs or 0))


def _chat_logprobs(part: Part, count: int) -> Json:
    content = [
        {**_logprob(step), "top_logprobs": [_logprob(a) for a in step.shown[:count]]}
        for step in part.steps
    ]
    return {"content": content, "refusal": None}


def _logprob(token: Step | Alternative) -> Json:
    return {**_token(token), "logprob": token.logprob}


COMPLETIONS = Dialect("cmpl-", "text_completion", "text_completion", _completion, _completion)
CHAT = Dialect(
    "chatcmpl-",
    "chat.completion",
    "chat.completion.chunk",
    _chat,
    _chat_delta,
    opening={"role": "assistant", "content": ""},
)
