"""Fitting: the strength that did best, and what it is worth on items that did not choose it."""

import hashlib
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

from adapter.evaluation.outcomes import Outcome, result


@dataclass(frozen=True, slots=True)
class Fit:
    """Cross-fitted strength: `alphas` by fold, each chosen on the other folds.

    `outcomes` are those of every item at the strength of its fold, in the order they came, and
    `result` is theirs: no item had a say in its own strength.
    """

    alphas: tuple[float, ...]
    outcomes: tuple[Outcome, ...]
    result: float


def best_alpha(outcomes: Iterable[Outcome], lower_is_better: bool) -> float:
    """The strength with the best result over the items that were asked at all of them.

    Of equal ones the smallest. Outcomes without a strength do not count. Raises ValueError if no
    item was asked at every strength.
    """
    by_alpha: dict[float, dict[str, Outcome]] = defaultdict(dict)
    for one in outcomes:
        if one.alpha is not None:
            by_alpha[one.alpha][one.item] = one
    common = set.intersection(*map(set, by_alpha.values())) if by_alpha else set()
    if not common:
        raise ValueError("no item was asked at every strength")
    sign = 1 if lower_is_better else -1
    loss = {
        alpha: sign * result(asked[item] for item in sorted(common))
        for alpha, asked in by_alpha.items()
    }
    return min(loss, key=lambda alpha: (loss[alpha], alpha))


def cross_fitted(
    outcomes: Sequence[Outcome],
    groups: Mapping[str, str],
    lower_is_better: bool,
    *,
    folds: int = 2,
    seed: int = 0,
) -> Fit:
    """The strength fitted on all folds but one, and measured on that one, for each of them.

    `outcomes` are one task's at several strengths; `groups` says by an item's name which others it
    stays with. The digest of its group puts an item into its fold, whatever else is asked. Raises
    ValueError if a fold is empty.
    """
    steered = [one for one in outcomes if one.alpha is not None]
    fold = {one.item: _fold(groups.get(one.item) or one.item, folds, seed) for one in steered}
    if set(fold.values()) != set(range(folds)):
        raise ValueError(f"{len(fold)} items are too few for {folds} folds")
    alphas = tuple(
        best_alpha([one for one in steered if fold[one.item] != held], lower_is_better)
        for held in range(folds)
    )
    kept = tuple(one for one in steered if one.alpha == alphas[fold[one.item]])
    return Fit(alphas, kept, result(kept))


def _fold(group: str, folds: int, seed: int) -> int:
    digest = hashlib.sha256(f"{seed}:{group}".encode()).digest()
    return int.from_bytes(digest[:8]) % folds
