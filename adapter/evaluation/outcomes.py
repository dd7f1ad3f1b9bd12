"""Outcome: what a system made of an item."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Outcome:
    """One item asked of one system at one strength.

    `system` is `hosted`, `adapted`, `expert NAME`, `anti-expert` or `tuned`; `alpha` is that of
    `adapted`, else None. `score` is 1 for right and 0 for wrong, of a text its bits; a system's
    result is the sum of scores over that of `amount`s, which are 1, of a text its bytes. `scores`
    holds one log-probability an answer, in nats, where answers were scored. Of the `tokens` that
    were steered `changed` were not the upstream's favourite; `places` are theirs, counted from 0.
    `cost` is None without prices; what a pass over several strengths cost stands with the first.
    """

    task: str
    system: str
    alpha: float | None
    item: str
    score: float
    amount: float = 1.0
    answer: str = ""
    scores: tuple[float, ...] = ()
    tokens: int = 0
    places: tuple[int, ...] = ()
    certified: int = 0
    expanded: int = 0
    truncated: int = 0
    calls: int = 0
    cost: float | None = None
    seconds: float = 0.0

    @property
    def changed(self) -> int:
        """How many tokens steering changed."""
        return len(self.places)


def result(outcomes: Iterable[Outcome]) -> float:
    """Accuracy, or bits per byte. Raises ValueError for none."""
    kept = list(outcomes)
    if not kept:
        raise ValueError("no outcomes")
    return sum(one.score for one in kept) / sum(one.amount for one in kept)
