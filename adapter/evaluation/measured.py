"""Measured: what each system's outcomes of a task add up to, beside the hosted model's."""

from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapter.evaluation.fitting import Fit
from adapter.evaluation.outcomes import Outcome, result
from adapter.statistics import (
    Floats,
    Interval,
    bootstrap,
    closed,
    mcnemar,
    mean_gap_closed,
    wilson,
)

HOSTED, ADAPTED, TUNED, ANTIEXPERT = "hosted", "adapted", "tuned", "anti-expert"
FITTED = "adapted, cross-fitted"
TEXT = "text"


@dataclass(frozen=True, slots=True)
class Measured:
    """One system, at one strength if it is steered, on the items it was asked.

    `alphas` are several where the strength was cross-fitted. `interval` is None of fewer than two
    texts.
    """

    system: str
    alphas: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    result: float
    interval: Interval | None

    @property
    def tokens(self) -> int:
        """How many were steered."""
        return sum(one.tokens for one in self.outcomes)

    @property
    def changed(self) -> float | None:
        """The share of the steered tokens that are not the upstream's favourite."""
        return sum(one.changed for one in self.outcomes) / self.tokens if self.tokens else None

    def status(self, name: str) -> float | None:
        """The share of the steered tokens that are certified, expanded or truncated."""
        kept = sum(getattr(one, name) for one in self.outcomes)
        return kept / self.tokens if self.tokens else None

    @property
    def cost(self) -> float | None:
        """What the upstream's calls cost, None without prices."""
        costs = [one.cost for one in self.outcomes if one.cost is not None]
        return sum(costs) if costs else None


@dataclass(frozen=True, slots=True)
class Comparison:
    """One system beside the hosted model, on the items both were asked.

    `p` is McNemar's, None of texts; `gap` is closed by what is steered, None where none was tuned.
    All are None of fewer than two such items.
    """

    difference: Interval | None = None
    p: float | None = None
    gap: Interval | None = None


def measured(kind: str, outcomes: Sequence[Outcome], fit: Fit | None) -> list[Measured]:
    """One task's systems, in the order of a report."""
    asked: dict[tuple[str, tuple[float, ...]], list[Outcome]] = defaultdict(list)
    for one in outcomes:
        asked[one.system, () if one.alpha is None else (one.alpha,)].append(one)
    if fit is not None:
        asked[FITTED, fit.alphas] = list(fit.outcomes)
    return [
        Measured(*key, tuple(asked[key]), result(asked[key]), _interval(kind, asked[key]))
        for key in sorted(asked, key=_place)
    ]


def compared(kind: str, systems: Sequence[Measured]) -> list[Comparison]:
    """Each of a task's systems beside the hosted one, which is compared to nothing itself."""
    hosted, tuned = _plain(systems, HOSTED), _plain(systems, TUNED)
    return [
        Comparison()
        if hosted is None or one is hosted
        else Comparison(*_beside(kind, hosted, one), _gap(hosted, one, tuned))
        for one in systems
    ]


def overall_gaps(tasks: Sequence[Sequence[Measured]]) -> dict[tuple[str, float | None], Interval]:
    """The gap closed by each steered system, the mean over all tasks, where each task has it.

    By system and strength; a cross-fitted one has None for that, for it differs from task to task.
    """
    columns: dict[tuple[str, float | None], list[tuple[Floats, Floats]]] = defaultdict(list)
    for systems in tasks:
        hosted, tuned = _plain(systems, HOSTED), _plain(systems, TUNED)
        if hosted is None or tuned is None:
            return {}
        for one in systems:
            table = _table(hosted, one, tuned)
            if one.alphas and table[1].shape[1] > 1:
                alpha = None if one.system == FITTED else one.alphas[0]
                columns[one.system, alpha].append(table)
    return {
        key: mean_gap_closed(tables) for key, tables in columns.items() if len(tables) == len(tasks)
    }


def _place(key: tuple[str, tuple[float, ...]]) -> tuple[int, str, tuple[float, ...]]:
    system, alphas = key
    known = {HOSTED: 0, ADAPTED: 1, FITTED: 2, TUNED: 4, ANTIEXPERT: 6}
    return known.get(system, 3 if alphas else 5), system, alphas


def _plain(systems: Sequence[Measured], name: str) -> Measured | None:
    return next((one for one in systems if one.system == name), None)


def _interval(kind: str, outcomes: Sequence[Outcome]) -> Interval | None:
    if kind != TEXT:
        return wilson(sum(one.score > 0 for one in outcomes), len(outcomes))
    if len(outcomes) < 2:
        return None
    bits, sizes = [one.score for one in outcomes], [one.amount for one in outcomes]
    return bootstrap([bits], lambda result: result, sizes)


def _beside(kind: str, hosted: Measured, other: Measured) -> tuple[Interval | None, float | None]:
    """The difference to the hosted model, and McNemar's p."""
    scores, sizes = _table(hosted, other)
    if sizes.shape[1] < 2:
        return None, None
    difference = bootstrap(scores, lambda base, result: result - base, sizes)
    return difference, None if kind == TEXT else mcnemar(*(scores > 0))


def _gap(hosted: Measured, steered: Measured, tuned: Measured | None) -> Interval | None:
    if tuned is None or not steered.alphas:
        return None
    scores, sizes = _table(hosted, steered, tuned)
    return bootstrap(scores, closed, sizes) if sizes.shape[1] > 1 else None


def _table(*systems: Measured) -> tuple[Floats, Floats]:
    """Scores and amounts (systems × items) of the items that all were asked."""
    by_item = [{one.item: one for one in system.outcomes} for system in systems]
    common = [item for item in by_item[0] if all(item in asked for asked in by_item)]
    scores = [[asked[item].score for item in common] for asked in by_item]
    sizes = [[asked[item].amount for item in common] for asked in by_item]
    return np.array(scores, float), np.array(sizes, float)
