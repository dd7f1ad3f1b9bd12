"""Outcomes by hand."""

from collections.abc import Sequence

from adapter.evaluation.outcomes import Outcome


def outcomes(
    system: str, scores: Sequence[float], *, alpha: float | None = None, amount: float = 1.0
) -> list[Outcome]:
    """One outcome a score, of items q0, q1, …"""
    return [
        Outcome("task", system, alpha, f"q{i}", score, amount) for i, score in enumerate(scores)
    ]
