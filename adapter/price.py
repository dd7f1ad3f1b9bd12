"""Price: what an upstream's tokens cost."""

from dataclasses import dataclass

from adapter.candidates import Usage

NANO = 10**9
"""Amounts of money are whole nano-units of the currency: sums are exact."""

_MILLION = 10**6


@dataclass(frozen=True, slots=True)
class Price:
    """Money for a million tokens; `cached` for prompt tokens the upstream has read before."""

    input: float
    output: float
    cached: float

    def nanos(self, usage: Usage) -> int:
        """What so many tokens cost, in nano-units, rounded up."""
        cached = min(usage.cached_tokens, usage.prompt_tokens)
        amount = (
            (usage.prompt_tokens - cached) * nanos(self.input)
            + cached * nanos(self.cached)
            + usage.completion_tokens * nanos(self.output)
        )
        return -(-amount // _MILLION)


def nanos(money: float) -> int:
    """An amount of money in nano-units."""
    return round(money * NANO)
