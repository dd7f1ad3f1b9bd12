"""Choosing: what a position says of labels, and which label wins.

A label can be spelt in two ways, as it stands and behind one space; what its spellings weigh adds
up. Pure functions: the upstream is asked elsewhere.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter.candidates import Candidate, Label, Verdict
from adapter.certificate import Tail
from adapter.steering import Adapted, Floats, log_sum


@dataclass(frozen=True, slots=True)
class Weight:
    """What one spelling of a label weighs, in nats: bounds from above where it is not `known`."""

    logprob: float
    upstream: float
    offset: float
    known: bool = True

    def then(self, later: "Weight") -> "Weight":
        """The weight of a path that goes on."""
        return Weight(
            self.logprob + later.logprob,
            self.upstream + later.upstream,
            self.offset + later.offset,
            self.known and later.known,
        )


def spellings(label: str) -> tuple[bytes, bytes]:
    """A label's bytes without and with one leading space; the same for a label that has one."""
    bare = label.removeprefix(" ").encode()
    return bare, b" " + bare


def weight(adapted: Adapted, token: Candidate, alpha: float, *, alike: bool) -> Weight | None:
    """What a token weighs, `alike`: with all that are spelt like it; None where it is not shown."""
    candidates = adapted.position.candidates
    entries = [
        i
        for i, c in enumerate(candidates)
        if c.identity == token.identity or (alike and not c.special and c.token == token.token)
    ]
    if not entries:
        return None
    upstream, offsets = adapted.upstream[entries], adapted.offsets[entries]
    offset = _pooled(upstream, offsets, alpha)
    return Weight(log_sum(adapted.logprobs[entries]), log_sum(upstream), offset)


def bound(adapted: Adapted, token: int, tail: Tail) -> Weight:
    """The most that a token of this id can weigh, which is not among the candidates."""
    upstream, lifts = tail.bound(adapted.position), tail.lifts(np.array([token]))
    lift = tail.lift() if lifts is None else float(lifts[0])
    norm = float(adapted.scores[0] - adapted.logprobs[0])
    offset = lift / tail.alpha if tail.alpha and math.isfinite(lift) else 0.0
    return Weight(upstream + lift - norm, upstream, offset, known=False)


def verdict(weights: Mapping[str, Sequence[Weight]], alpha: float) -> Verdict | None:
    """Every label's share among those shown; None where none is shown.

    `weights` holds each label's spellings. A label is shown where one of them is known, and those
    count; another has the share it would have, did it weigh all it can.
    """
    shown = {label: [w for w in found if w.known] for label, found in weights.items()}
    masses = {label: _sum(w.logprob for w in known) for label, known in shown.items()}
    total = _sum(masses.values())
    if total == -math.inf:
        return None
    labels = tuple(_label(label, shown[label], weights[label], total, alpha) for label in weights)
    most = max(
        (_sum(w.logprob for w in weights[label]) for label in weights if not shown[label]),
        default=-math.inf,
    )
    return Verdict(labels, uncertain=most > max(masses.values()))


def best(labels: Iterable[Label]) -> Label:
    """The likeliest label shown; of equals the upstream's favourite, then the first."""
    return max((one for one in labels if one.shown), key=lambda x: (x.logprob, x.upstream_logprob))


def _label(
    text: str, known: Sequence[Weight], found: Sequence[Weight], total: float, alpha: float
) -> Label:
    counted = known or found
    logprob = _sum(w.logprob for w in counted)
    upstream = np.array([w.upstream for w in counted])
    offsets = np.array([w.offset for w in counted])
    return Label(
        text=text,
        logprob=min(0.0, logprob - (total if known else _sum((logprob, total)))),
        upstream_logprob=log_sum(upstream),
        offset=_pooled(upstream, offsets, alpha),
        shown=bool(known),
    )


def _pooled(upstream: Floats, offsets: Floats, alpha: float) -> float:
    """The one offset that, times α, lifts the sum of all to the sum of all that are lifted."""
    if len(offsets) == 1:
        return float(offsets[0])
    if alpha:
        return (log_sum(upstream + alpha * offsets) - log_sum(upstream)) / alpha
    return float(np.exp(upstream - log_sum(upstream)) @ offsets)


def _sum(logprobs: Iterable[float]) -> float:
    return log_sum(np.array(list(logprobs), np.float64))
