"""Lookups: what the cache could do for a request."""

from collections.abc import Iterable
from dataclasses import dataclass


@dataclass(slots=True)
class Lookups:
    """How often what was asked for was there, and how often the upstream had to be called."""

    hits: int = 0
    misses: int = 0

    def count(self, hit: bool) -> None:
        """One more."""
        if hit:
            self.hits += 1
        else:
            self.misses += 1

    def since(self, before: "Lookups") -> "Lookups":
        """What came behind an earlier count."""
        return Lookups(self.hits - before.hits, self.misses - before.misses)


def outcome(lookups: Iterable[Lookups]) -> str:
    """All of them together: hit | partial | miss."""
    counts = list(lookups)
    if not any(one.hits for one in counts):
        return "miss"
    return "partial" if any(one.misses for one in counts) else "hit"
