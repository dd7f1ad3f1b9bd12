"""The values that flow through the product: Candidate, Position, Draft, Step."""

import math
from collections.abc import Iterable
from dataclasses import dataclass, replace

from adapter.errors import UpstreamMalformed

END = "end"
"""The special class of every token that ends the text."""

END_NAME = "<|end|>"
"""How END is written where people or programs read tokens as text."""

_SENTINEL = -9999.0
_ROUNDING = 1e-6
_MASS_ERROR = 0.02
"""Reported mass above 1 that is still taken for rounding (providers print few digits)."""


@dataclass(frozen=True, slots=True)
class Candidate:
    """One next token the upstream offered; log-probability in nats.

    `token` is the token's own bytes, b"" for a special token; `special` is then its class,
    `END` or the token's name. `id` belongs to the upstream's vocabulary.
    """

    token: bytes
    logprob: float
    id: int | None = None
    special: str | None = None

    @property
    def identity(self) -> tuple[int | None, bytes, str | None]:
        """What makes two candidates the same token: the id where known, else bytes and class."""
        return (self.id, b"", None) if self.id is not None else (None, self.token, self.special)


@dataclass(frozen=True, slots=True)
class Position:
    """One step of the upstream: unique, finite candidates, best first.

    `drafted` is the token the upstream itself took (None where it was told what to take);
    `hidden` the probability mass of all tokens not shown, in [0, 1]. No token not shown has a
    log-probability above `floor` (nats), 0.0 where nothing is known but the hidden mass.
    """

    candidates: tuple[Candidate, ...]
    drafted: Candidate | None
    hidden: float
    floor: float = 0.0


@dataclass(frozen=True, slots=True)
class Usage:
    """What upstream calls consumed; tokens as the upstream counted them."""

    calls: int = 0
    prompt_tokens: int = 0
    cached_tokens: int = 0
    completion_tokens: int = 0

    def __add__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls + other.calls,
            self.prompt_tokens + other.prompt_tokens,
            self.cached_tokens + other.cached_tokens,
            self.completion_tokens + other.completion_tokens,
        )

    def __sub__(self, other: "Usage") -> "Usage":
        return Usage(
            self.calls - other.calls,
            self.prompt_tokens - other.prompt_tokens,
            self.cached_tokens - other.cached_tokens,
            self.completion_tokens - other.completion_tokens,
        )


@dataclass(frozen=True, slots=True)
class Draft:
    """What one upstream call returned: a run of positions; `source` is upstream or cache.

    `kept`: how many of them are what anybody gets who asks at their prefix; None: all.
    """

    positions: tuple[Position, ...]
    finish_reason: str | None
    usage: Usage
    source: str = "upstream"
    kept: int | None = None


@dataclass(frozen=True, slots=True)
class Alternative:
    """A candidate of a step as a trace shows it; all numbers in nats."""

    token: bytes
    upstream_logprob: float
    offset: float
    logprob: float
    special: str | None = None


@dataclass(frozen=True, slots=True)
class Step:
    """One emitted token and why: adapted and upstream log-probability, offset Δ in nats.

    `rank` is the token's place among the upstream's candidates (0 = its favourite, None = it was
    not shown); `status` certified | expanded | truncated; `text` what this step released to the
    reader, "" while a character or a possible stop string is still open; `shown` the best
    candidates where asked for. `bounds`: of a token that is given, the least and the most that its
    `logprob` can be, whatever the hidden tokens are; −∞ where nothing bounds them.
    """

    token: bytes
    logprob: float
    upstream_logprob: float
    offset: float
    rank: int | None
    status: str
    flags: frozenset[str]
    source: str
    special: str | None = None
    text: str = ""
    shown: tuple[Alternative, ...] = ()
    bounds: tuple[float, float] | None = None


@dataclass(frozen=True, slots=True)
class Label:
    """One of the answers to choose from; nats.

    `logprob` is adapted and renormalised over the labels shown; `upstream_logprob` the upstream's
    own, and with α times `offset` its score. Where not `shown` all three are bounds from above.
    """

    text: str
    logprob: float
    upstream_logprob: float
    offset: float
    shown: bool


@dataclass(frozen=True, slots=True)
class Verdict:
    """The labels as they were given; `uncertain`: one that is not shown may be the best."""

    labels: tuple[Label, ...]
    uncertain: bool


@dataclass(frozen=True, slots=True)
class Echo:
    """A prompt given back: its tokens, and from the second one on how likely each was.

    `steps` is empty where that was not asked. `usage` is what it took to find out.
    """

    first: Candidate
    steps: tuple[Step, ...]
    text: str
    usage: Usage = Usage()


@dataclass(frozen=True, slots=True)
class Ending:
    """How a choice ended; `text` is what was still held back.

    Flag `end_unsteered`: the upstream ended the text by itself and hid END from the candidates.
    `out_of_budget`: no further upstream call could be paid. `verdict`: how the text was chosen,
    where there were labels to choose from.
    """

    finish_reason: str
    text: str
    usage: Usage
    flags: frozenset[str] = frozenset()
    out_of_budget: bool = False
    verdict: Verdict | None = None


def rank(candidate: Candidate) -> tuple[float, int]:
    """The order of candidates as a sort key: best first, then the lower id."""
    return -candidate.logprob, -1 if candidate.id is None else candidate.id


def make_position(
    entries: Iterable[Candidate | None],
    drafted: Candidate | None,
    vocabulary_size: int | None = None,
) -> Position:
    """A sound Position from the top-k that an upstream sent, in any order.

    Entries without a name (None), without a number, -9999.0 sentinels and repeats of a token (the
    best stays) are left out; rounding above 0 is cut, and a mass above 1 scaled to 1. `floor` is
    the lowest entry, unless one was left out that may be another token, and above it. Where all of
    `vocabulary_size` tokens are shown nothing is hidden, whatever rounding says. Raises
    UpstreamMalformed where nothing usable is left or the mass is far above 1.
    """
    best: dict[tuple[int | None, bytes, str | None], Candidate] = {}
    lost = False
    for entry in entries:
        if entry is None or not math.isfinite(entry.logprob) or entry.logprob <= _SENTINEL:
            lost = True
            continue
        kept = best.get(entry.identity)
        lost = lost or (kept is not None and entry.id is None)
        if kept is None or entry.logprob > kept.logprob:
            best[entry.identity] = entry if entry.logprob <= 0.0 else replace(entry, logprob=0.0)
    if not best:
        raise UpstreamMalformed("the upstream sent no usable log-probabilities for a token")
    ordered = sorted(best.values(), key=rank)
    mass = math.fsum(math.exp(c.logprob) for c in ordered)
    if mass > 1.0 + _MASS_ERROR:
        raise UpstreamMalformed(
            f"the upstream's log-probabilities add up to a mass of {mass:.3f}; "
            "they are no distribution, so nothing can be steered"
        )
    if mass > 1.0 + _ROUNDING:
        excess = math.log(mass)
        ordered = [replace(c, logprob=c.logprob - excess) for c in ordered]
        drafted = None if drafted is None else replace(drafted, logprob=drafted.logprob - excess)
    whole = vocabulary_size is not None and len(ordered) >= vocabulary_size
    hidden = 0.0 if whole else max(0.0, 1.0 - mass)
    floor = 0.0 if lost else ordered[-1].logprob
    return Position(tuple(ordered), drafted, hidden, floor)
