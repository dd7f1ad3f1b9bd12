"""Acceptance: may a token the upstream drew stay, so that what comes out is the adapted draw?

The rejection rule of speculative sampling. The upstream's hidden tail is one symbol, H: a drafted
token outside the candidates stands for H, and where H comes out the token is drawn from the
adapted tail. Only for a fresh draft drawn from the very distribution it shows; anything else is
for the match rule.
"""

import numpy as np
from numpy.typing import NDArray

Floats = NDArray[np.float64]


def accept(
    target: Floats, source: Floats, hidden: float, drafted: int, random: np.random.Generator
) -> int:
    """The entry that comes out: the drafted one with probability min(1, p/q), else from (p − q)₊.

    `target`: adapted probabilities, of the shown entries first, then of the imputed ones.
    `source`: the upstream's probabilities of the shown entries, `hidden` that of all others.
    `drafted`: the entry the upstream drew; any from `len(source)` on is a hidden one.
    """
    k = len(source)
    p, q = np.append(target[:k], target[k:].sum()), np.append(source, hidden)
    symbol = min(drafted, k)
    if random.random() * q[symbol] >= p[symbol]:
        symbol = _drawn(np.maximum(p - q, 0.0), p, random)
    return symbol if symbol < k else k + _drawn(target[k:], target[k:], random)


def _drawn(weights: Floats, otherwise: Floats, random: np.random.Generator) -> int:
    """One index drawn by weight; rounding can leave p = q without any, then p itself decides."""
    if not weights.any():
        weights = otherwise
    return int(random.choice(len(weights), p=weights / weights.sum()))
