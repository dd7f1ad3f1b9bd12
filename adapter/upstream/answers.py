"""The parts of a completion answer that all dialects share, read without trust."""

import math
from collections.abc import Mapping
from dataclasses import replace
from typing import Any

from adapter.candidates import Candidate, Usage
from adapter.errors import UpstreamMalformed

_UNLIKELY = -9999  # what the older OpenAI schema says in place of a log-probability


def only_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The first choice; raises UpstreamMalformed where there is none."""
    choices = body.get("choices")
    if isinstance(choices, list) and choices and isinstance(choices[0], dict):
        return choices[0]
    raise UpstreamMalformed("the upstream's answer has no choices: is this a completions API?")


def logprobs_of(choice: Mapping[str, Any]) -> Mapping[str, Any]:
    """The choice's log-probabilities; raises UpstreamMalformed where there are none."""
    found = choice.get("logprobs")
    if isinstance(found, dict):
        return found
    raise UpstreamMalformed(
        "the upstream gives no log-probabilities, so nothing can be steered: "
        "use a server or model that returns them"
    )


def usage_of(body: Mapping[str, Any], calls: int) -> Usage:
    """What the answer says it consumed; 0 where it does not say."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return Usage(calls=calls)
    details = usage.get("prompt_tokens_details")
    return Usage(
        calls=calls,
        prompt_tokens=_count(usage.get("prompt_tokens")),
        cached_tokens=_count(details.get("cached_tokens")) if isinstance(details, dict) else 0,
        completion_tokens=_count(usage.get("completion_tokens")),
    )


def finish_of(choice: Mapping[str, Any]) -> str | None:
    """Why the upstream stopped, in its own word."""
    reason = choice.get("finish_reason")
    return reason if isinstance(reason, str) else None


def nats(value: Any) -> float:
    """A log-probability; NaN for whatever is no number, or only says "very unlikely"."""
    if isinstance(value, bool) or not isinstance(value, int | float):
        return math.nan
    try:
        return float(value) if value > _UNLIKELY else math.nan
    except OverflowError:
        return math.nan


def usable(drafted: Candidate | None) -> Candidate | None:
    """The token the upstream took, rounding above 0 cut; None where it has no number."""
    if drafted is None or not math.isfinite(drafted.logprob):
        return None
    return replace(drafted, logprob=min(drafted.logprob, 0.0))


def _count(value: Any) -> int:
    return value if type(value) is int and value >= 0 else 0
