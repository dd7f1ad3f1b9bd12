"""Several experts against one anti-expert: the weighted sum of what each one says."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.bridge import Bridge, Offsets
from tokenizer_maps.steps import Survey, Whole

Floats = NDArray[np.float64]


def combined(offsets: Sequence[Offsets], weights: Sequence[float]) -> Offsets:
    """Δ = Σ wᵢ Δᵢ; a flag of one is a flag of all."""
    pairs = list(zip(weights, offsets, strict=True))
    bounds = [_bounds(w, o) for w, o in pairs]
    sound = [pair for pair in bounds if pair is not None]
    low, high = (
        (np.sum([pair[i] for pair in sound], axis=0) for i in (0, 1))
        if len(sound) == len(pairs)
        else (None, None)
    )
    return Offsets(
        delta=np.sum([w * o.delta for w, o in pairs], axis=0),
        unscored=np.any([o.unscored for o in offsets], axis=0),
        multi=np.any([o.multi for o in offsets], axis=0),
        clamped=np.any([o.clamped for o in offsets], axis=0),
        capped=np.any([o.capped for o in offsets], axis=0),
        low=low,
        high=high,
    )


def combined_whole(
    bridge: Bridge, experts: Sequence[Survey], antiexpert: Survey, weights: Sequence[float]
) -> Whole:
    """The same for the whole upstream vocabulary; the prior is the anti-expert's."""
    wholes = [bridge.whole(expert, antiexpert) for expert in experts]
    highs = [
        _highest(bridge, weight, whole, expert, antiexpert)
        for weight, whole, expert in zip(weights, wholes, experts, strict=True)
    ]
    delta = np.sum([w * one.delta for w, one in zip(weights, wholes, strict=True)], axis=0)
    return Whole(wholes[0].prior, delta, np.sum(highs, axis=0))


def _highest(
    bridge: Bridge, weight: float, whole: Whole, expert: Survey, antiexpert: Survey
) -> Floats:
    """The upper end of a weighted offset; with a negative weight that is its lower end's."""
    if weight >= 0:
        return _scaled(weight, whole.high)
    # The highest offset of the anti-expert against the expert is minus the lowest one.
    return _scaled(-weight, bridge.whole(antiexpert, expert).high)


def _scaled(weight: float, values: Floats) -> Floats:
    return weight * values if weight else np.zeros_like(values)  # 0 · ∞ is 0 here


def _bounds(weight: float, offsets: Offsets) -> tuple[Floats, Floats] | None:
    """The interval of a weighted offset; a negative weight turns it round."""
    if offsets.low is None or offsets.high is None:
        return None
    low, high = weight * offsets.low, weight * offsets.high
    return np.minimum(low, high), np.maximum(low, high)
