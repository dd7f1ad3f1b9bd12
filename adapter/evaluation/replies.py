"""Replies: what a system said to one item, before it is judged."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from adapter.candidates import Step, Verdict
from adapter.choosing import best
from adapter.evaluation.suite import Task


@dataclass(frozen=True, slots=True)
class Strength:
    """A system and how strongly it is steered, as an Outcome names them."""

    system: str
    alpha: float | None = None


@dataclass(frozen=True, slots=True)
class Scored:
    """A text as it was scored: its log-probability in nats, the tokens and bytes that it is of."""

    logprob: float
    tokens: int
    size: int


@dataclass(frozen=True, slots=True)
class Tally:
    """Of the tokens that were steered, the places of those that steering changed, and the rest."""

    tokens: int = 0
    places: tuple[int, ...] = ()
    certified: int = 0
    expanded: int = 0
    truncated: int = 0

    def __add__(self, other: "Tally") -> "Tally":
        return Tally(
            self.tokens + other.tokens,
            (*self.places, *(self.tokens + place for place in other.places)),
            self.certified + other.certified,
            self.expanded + other.expanded,
            self.truncated + other.truncated,
        )

    @classmethod
    def given(cls, steps: Sequence[Step]) -> "Tally":
        """Of tokens that were given: nothing could change them."""
        status = [step.status for step in steps]
        return cls(
            tokens=len(status),
            certified=status.count("certified"),
            expanded=status.count("expanded"),
            truncated=status.count("truncated"),
        )

    @classmethod
    def drawn(cls, steps: Sequence[Step]) -> "Tally":
        """Of tokens that were generated."""
        own = cls.given(steps)
        places = tuple(at for at, step in enumerate(steps) if step.rank != 0)
        return cls(own.tokens, places, own.certified, own.expanded, own.truncated)

    @classmethod
    def chosen(cls, verdict: Verdict) -> "Tally":
        """Of a label: changed where it is not the upstream's, truncated where it is uncertain."""
        shown = [label for label in verdict.labels if label.shown]
        own = max(shown, key=lambda label: label.upstream_logprob)
        changed, sure = own.text != best(shown).text, int(not verdict.uncertain)
        return cls(1, (0,) if changed else (), certified=sure, truncated=1 - sure)


@dataclass(frozen=True, slots=True)
class Spent:
    """Upstream calls, and what they cost, None without prices."""

    calls: int = 0
    cost: float | None = None

    def __add__(self, other: "Spent") -> "Spent":
        priced = self.cost is not None and other.cost is not None
        cost = (self.cost or 0.0) + (other.cost or 0.0) if priced else None
        return Spent(self.calls + other.calls, cost)


@dataclass(frozen=True, slots=True)
class Reply:
    """One system's: the texts it scored, or the answer it gave; and what that took.

    `weights` holds a log-probability for each label, where it chose one.
    """

    scored: tuple[Scored, ...] = ()
    answer: str = ""
    weights: tuple[float, ...] = ()
    tally: Tally = Tally()
    spent: Spent = Spent()


class System(Protocol):
    """Whoever is asked; every method answers once for each of the strengths wanted, in order.

    `at_once`: how many items may be under way. Raises AdapterError kinds.
    """

    @property
    def at_once(self) -> int: ...

    @property
    def strengths(self) -> tuple[Strength, ...]: ...

    async def scored(
        self, prompt: str, answers: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """Each answer as it goes on from the prompt; without a prompt its first token is free."""
        ...

    async def chosen(
        self, prompt: str, labels: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """The likeliest label behind the prompt."""
        ...

    async def written(self, prompt: str, task: Task, wanted: Sequence[Strength]) -> list[Reply]:
        """The greedy text behind the prompt."""
        ...
