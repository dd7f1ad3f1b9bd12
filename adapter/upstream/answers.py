"""The parts of a completion answer that all dialects share, read without trust."""

import json
import math
from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import replace
from typing import Any, TypeVar

from adapter.candidates import Candidate, Usage
from adapter.errors import UpstreamMalformed

_T = TypeVar("_T")

_MOST_TOKENS = 10**9
_UNLIKELY = -9999  # what the older OpenAI schema says in place of a log-probability


def parsed(raw: str | bytes) -> Any:
    """JSON, or None; NaN and infinities stay floats, which no reader of log-probabilities keeps."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None


def only_choice(body: Mapping[str, Any]) -> Mapping[str, Any]:
    """The one choice that was asked for; raises UpstreamMalformed where there is none, or more."""
    return choices_of(body, 1)[0]


def choices_of(body: Mapping[str, Any], most: int) -> Sequence[Mapping[str, Any]]:
    """One choice at least and no more than were asked for; raises UpstreamMalformed otherwise."""
    choices = body.get("choices")
    if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
        choices = []
    if not choices:
        raise UpstreamMalformed("the upstream's answer has no choices: is this a completions API?")
    told = [choice["index"] for choice in choices if choice.get("index") is not None]
    if len(choices) > most or len(told) > sum(place in told for place in range(most)):
        raise UpstreamMalformed(
            f"the upstream answers with other than the {most} choices asked for"
        )
    return choices


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
    cached = details.get("cached_tokens") if isinstance(details, dict) else 0
    return Usage(
        calls=calls,
        prompt_tokens=_count(usage.get("prompt_tokens")) or 0,
        cached_tokens=_count(cached) or 0,
        completion_tokens=_count(usage.get("completion_tokens")) or 0,
    )


def consumed(body: Mapping[str, Any]) -> Usage | None:
    """What the answer says it consumed, None where it does not say enough to be paid by."""
    usage = body.get("usage")
    if not isinstance(usage, dict):
        return None
    counts = (_count(usage.get(name)) for name in ("prompt_tokens", "completion_tokens"))
    return None if None in counts else usage_of(body, calls=1)


def tokens_shown(body: Mapping[str, Any]) -> int:
    """The tokens an event brings, one at least where it brings any text."""
    choices = body.get("choices")
    choice = choices[0] if isinstance(choices, list) and choices else None
    if not isinstance(choice, dict):
        return 0
    shown = choice.get("logprobs")
    columns = [shown.get("tokens"), shown.get("content")] if isinstance(shown, dict) else []
    longest = max((len(column) for column in columns if isinstance(column, list)), default=0)
    return longest or int(bool(text_of(choice)))


def text_of(choice: Mapping[str, Any]) -> str:
    """The text that a choice, or a chunk of one, brings; "" where there is none."""
    message = choice.get("message") or choice.get("delta")
    text = message.get("content") if isinstance(message, dict) else choice.get("text")
    return text if isinstance(text, str) else ""


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


def top(
    listed: Collection[_T], k: int, value: Callable[[_T], float], sampled: Callable[[_T], bool]
) -> Collection[_T]:
    """The k best entries; on a tie the sampled one is left out.

    Servers append it where it is none of the k. Keeping it as a candidate would favour tokens for
    having been sampled.
    """
    if len(listed) <= k:
        return listed

    def order(entry: _T) -> tuple[float, bool]:
        number = value(entry)
        # What is no number stays, for who knows its place.
        return -math.inf if math.isnan(number) else -number, sampled(entry)

    return sorted(listed, key=order)[:k]


def usable(drafted: Candidate | None) -> Candidate | None:
    """The token the upstream took, rounding above 0 cut; None where it has no number."""
    if drafted is None or not math.isfinite(drafted.logprob):
        return None
    return replace(drafted, logprob=min(drafted.logprob, 0.0))


def _count(value: Any) -> int | None:
    """A number of tokens; None for what is none, or more than any call has."""
    return value if type(value) is int and 0 <= value <= _MOST_TOKENS else None
