"""What both bridge benches say about numbers."""

from collections.abc import Mapping

import numpy as np
from numpy.typing import NDArray

from adapter.statistics import bootstrap

Floats = NDArray[np.float64]
Table = Mapping[str, Floats]  # by rule: one number a position
RESAMPLES = 2000
OURS = ("fast", "exact")


def normalised(scores: Floats) -> Floats:
    """Log-probabilities of scores in nats."""
    return scores - np.logaddexp.reduce(scores)


def means(table: Table) -> dict[str, float]:
    """By rule."""
    return {rule: round(float(values.mean()), 4) for rule, values in table.items()}


def differences(table: Table) -> dict[str, dict[str, list[float]]]:
    """By our rule, then by any other: [mean, low, high] of other − ours; above 0 speaks for us."""
    return {
        ours: {rule: spread(table[rule] - table[ours]) for rule in table if rule != ours}
        for ours in OURS
        if ours in table
    }


def spread(values: Floats) -> list[float]:
    """[mean, low, high]: the 95 % percentile interval of the mean."""
    mean = bootstrap([values], lambda means: means, resamples=RESAMPLES)
    return [round(x, 4) for x in (mean.value, mean.low, mean.high)]


def row(*cells: object) -> str:
    """One line of a Markdown table."""
    return f"| {' | '.join(map(str, cells))} |"


def header(*cells: str) -> list[str]:
    """The first two lines of a Markdown table."""
    return [row(*cells), row(*["---"] * len(cells))]


def verdict(mean: float, low: float, high: float) -> str:
    """An interval for a reader: bold above 0, italic below."""
    mark = "**" if low > 0 else "_" if high < 0 else ""
    return f"{mark}{mean:+.3f} [{low:+.3f}, {high:+.3f}]{mark}"
