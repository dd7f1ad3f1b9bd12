"""Places: where in its answers steering changed tokens, as in §6 of the paper."""

import math
from collections.abc import Iterable
from dataclasses import dataclass

from adapter.evaluation.outcomes import Outcome

_BINS = ((0, 1), (1, 2), (2, 3), (3, 5), (5, 9), (9, 17), (17, math.inf))


@dataclass(frozen=True, slots=True)
class Place:
    """How many tokens of some places were steered, and how many of these changed."""

    name: str
    changed: int
    steered: int

    @property
    def share(self) -> float | None:
        """None where nothing was steered."""
        return self.changed / self.steered if self.steered else None


def places(outcomes: Iterable[Outcome]) -> list[Place]:
    """By place in the answer, counted from 0; each outcome must be of one answer."""
    kept = list(outcomes)
    return [
        Place(
            _name(low, high),
            sum(low <= place < high for one in kept for place in one.places),
            sum(int(min(one.tokens, high)) - low for one in kept if one.tokens > low),
        )
        for low, high in _BINS
    ]


def _name(low: int, high: float) -> str:
    if high == math.inf:
        return f"{low}+"
    return f"{low}" if high == low + 1 else f"{low}–{high - 1}"
