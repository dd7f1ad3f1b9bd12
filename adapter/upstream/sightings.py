"""What an answer shows, whichever server gave it; the probe looks at strangers."""

import math
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Any, Literal

from adapter.upstream.answers import finish_of, nats, parsed, text_of

_ID = re.compile(r"token_id:(\d{1,9})")

_REPLACED = "\ufffd".encode()

Name = int | bytes | str


@dataclass(frozen=True, slots=True)
class Entry:
    """One listed token: its key or text, log-probability (NaN: none), and what else names it."""

    text: str
    logprob: float
    id: int | None = None
    spelt: bytes | None = None

    @property
    def vague(self) -> bool:
        """Whether other tokens may go by the same name."""
        if self.id is not None:
            return False
        return _REPLACED in self.spelt if self.spelt else not self.text or "\ufffd" in self.text

    @property
    def name(self) -> Name:
        """The best there is to tell it from others."""
        if self.id is not None:
            return self.id
        return self.text if self.spelt is None else self.spelt


@dataclass(frozen=True, slots=True)
class Sighting:
    """One step of an answer: the token taken, and those listed beside it."""

    taken: Entry
    listed: tuple[Entry, ...]

    def of(self, name: Name) -> float | None:
        """The log-probability listed under a name."""
        return next((e.logprob for e in self.listed if e.name == name), None)


@dataclass(frozen=True, slots=True)
class Seen:
    """An answer as the probe sees it; `shape` is None where no candidates are listed.

    Counts are None where the server does not tell them; `texts` are those of all choices.
    """

    status: int
    shape: Literal["classic", "content"] | None = None
    steps: tuple[Sighting, ...] = ()
    text: str = ""
    texts: tuple[str, ...] = ()
    finish: str | None = None
    prompt_tokens: int | None = None
    completion_tokens: int | None = None
    cached_tokens: int | None = None
    error: Any = None

    @property
    def ok(self) -> bool:
        return self.status == 200


def see(status: int, body: Any) -> Seen:
    """An answer to a completion or chat request; of what is odd, nothing is seen."""
    if status != 200 or not isinstance(body, dict):
        return Seen(status if status != 200 else 502, error=body)
    listed = body.get("choices")
    choices = [_object(choice) for choice in listed] if isinstance(listed, list) else []
    choice = choices[0] if choices else {}
    logprobs = _object(choice.get("logprobs"))
    steps = tuple(_steps(logprobs))
    usage = _object(body.get("usage"))
    details = _object(usage.get("prompt_tokens_details"))
    return Seen(
        status=status,
        shape=_shape(logprobs) if any(s.listed for s in steps) else None,
        steps=steps,
        text=text_of(choice),
        texts=tuple(map(text_of, choices)),
        finish=finish_of(choice),
        prompt_tokens=_count(usage.get("prompt_tokens")),
        completion_tokens=_count(usage.get("completion_tokens")),
        cached_tokens=_count(details.get("cached_tokens")),
    )


def see_stream(events: Iterable[bytes]) -> tuple[Seen, ...]:
    """The events of a streamed answer, from the data of each."""
    return tuple(see(200, parsed(data)) for data in events if data.strip() != b"[DONE]")


def apart(one: Sighting, other: Sighting) -> float | None:
    """The largest difference between tokens listed in both, in nats; None where there are none.

    What is printed of parts of characters names many tokens, and counts for nothing.
    """
    both = [(e.logprob, other.of(e.name)) for e in one.listed if not e.vague]
    gaps = [abs(a - b) for a, b in both if b is not None and math.isfinite(a - b)]
    return max(gaps, default=None)


def _object(value: Any) -> Mapping[str, Any]:
    return value if isinstance(value, dict) else {}


def _shape(logprobs: Mapping[str, Any]) -> Literal["classic", "content"]:
    return "content" if isinstance(logprobs.get("content"), list) else "classic"


def _steps(logprobs: Mapping[str, Any]) -> Iterator[Sighting]:
    content = logprobs.get("content")
    if isinstance(content, list):
        for item in content:
            if isinstance(item, dict):
                listed = item.get("top_logprobs")
                inner = listed if isinstance(listed, list) else []
                yield Sighting(_entry(item), tuple(_entry(i) for i in inner if isinstance(i, dict)))
        return
    tokens, taken, top = (logprobs.get(n) for n in ("tokens", "token_logprobs", "top_logprobs"))
    if not (isinstance(tokens, list) and isinstance(taken, list) and isinstance(top, list)):
        return
    for key, logprob, shown in zip(tokens, taken, top, strict=False):
        listed = shown if isinstance(shown, dict) else {}
        yield Sighting(_named(key, logprob), tuple(_named(k, v) for k, v in listed.items()))


def _named(key: Any, logprob: Any) -> Entry:
    by_id = _ID.fullmatch(key) if isinstance(key, str) else None
    return Entry(str(key), nats(logprob), int(by_id[1]) if by_id else None)


def _entry(item: Mapping[str, Any]) -> Entry:
    named = _named(item.get("token"), item.get("logprob"))
    ids = (item.get("id"), item.get("token_id"), named.id)
    spelt = item.get("bytes") if named.id is None else None  # they spell the id
    try:
        plain = bytes(spelt) if isinstance(spelt, list) else None
    except (TypeError, ValueError):
        plain = None
    return Entry(named.text, named.logprob, next((i for i in ids if type(i) is int), None), plain)


def _count(value: Any) -> int | None:
    return value if type(value) is int and value >= 0 else None
