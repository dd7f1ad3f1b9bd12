"""What the replies add up to: accuracies, the gap closed, and answers side by side."""

from collections.abc import Mapping, Sequence

import numpy as np

from adapter.demo.asking import Reply
from adapter.statistics import Interval, bootstrap, closed


def accuracy(replies: Sequence[Reply]) -> float:
    """The share of right answers."""
    return sum(reply.right for reply in replies) / len(replies)


def gap(hosted: Sequence[Reply], steered: Sequence[Reply], tuned: Sequence[Reply]) -> Interval:
    """The gap closed on the same questions."""
    rights = [[reply.right for reply in replies] for replies in (hosted, steered, tuned)]
    return bootstrap(np.array(rights, float), closed)


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
        "gap_closed": close.value,
        "gap_closed_interval": [close.low, close.high],
        "gap_closed_whole_vocabulary": whole.value,
        "gap_closed_whole_vocabulary_interval": [whole.low, whole.high],
        "calls_per_token": calls_per_token(steered),
        "questions": len(new["adapted"]) + len(old["adapted"]),
        "seconds": seconds,
    }
