"""What the replies add up to: accuracies, the gap closed, and answers side by side."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np

from adapter.demo.asking import Reply

_RESAMPLES = 10_000


@dataclass(frozen=True, slots=True)
class Gap:
    """(steered − hosted) / (tuned − hosted) and its 95 % bootstrap interval."""

    closed: float
    low: float
    high: float


def accuracy(replies: Sequence[Reply]) -> float:
    """The share of right answers."""
    return sum(reply.right for reply in replies) / len(replies)


def gap(hosted: Sequence[Reply], steered: Sequence[Reply], tuned: Sequence[Reply]) -> Gap:
    """The gap closed on the same questions; they are resampled in pairs, with a fixed seed."""
    right = np.array([[r.right for r in replies] for replies in (hosted, steered, tuned)], float)
    picks = np.random.default_rng(0).integers(0, right.shape[1], (_RESAMPLES, right.shape[1]))
    resampled = right[:, picks].mean(axis=2)
    closed = [closed_share(*column) for column in resampled.T]
    low, high = np.quantile(closed, [0.025, 0.975])
    return Gap(closed_share(*right.mean(axis=1)), float(low), float(high))


def closed_share(hosted: float, steered: float, tuned: float) -> float:
    """The paper's gap closed; 0 where there is no gap."""
    return float((steered - hosted) / (tuned - hosted)) if tuned != hosted else 0.0


def calls_per_token(replies: Sequence[Reply]) -> float:
    """Upstream calls for each token decided, the one that ended the text included."""
    return sum(r.calls for r in replies) / sum(len(r.steps) for r in replies)


def spelt(reply: Reply) -> list[tuple[str, bool]]:
    """The answer's tokens of text, each with whether steering changed it."""
    return [(step["token"], step["rank"] != 0) for step in reply.steps if step["bytes"]]


def summary(
    new: Mapping[str, Sequence[Reply]], old: Mapping[str, Sequence[Reply]], seconds: float
) -> dict[str, object]:
    """The one object `adapter demo --json` prints."""
    close = gap(new["hosted"], new["adapted"], new["tuned"])
    whole = gap(new["hosted"], new["adapted_whole"], new["tuned"])
    steered = [*new["adapted"], *old["adapted"]]
    return {
        "new": {name: accuracy(replies) for name, replies in new.items()},
        "old": {name: accuracy(replies) for name, replies in old.items()},
        "gap_closed": close.closed,
        "gap_closed_interval": [close.low, close.high],
        "gap_closed_whole_vocabulary": whole.closed,
        "gap_closed_whole_vocabulary_interval": [whole.low, whole.high],
        "calls_per_token": calls_per_token(steered),
        "questions": len(new["adapted"]) + len(old["adapted"]),
        "seconds": seconds,
    }
