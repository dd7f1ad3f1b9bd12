"""Parts: what generation yields, choice by choice, for answers and streams alike."""

import codecs
from collections.abc import AsyncGenerator, Iterable, Sequence
from contextlib import aclosing
from dataclasses import dataclass, field
from typing import TYPE_CHECKING

from adapter.budget import Bill
from adapter.candidates import Echo, Ending, Step, Usage
from adapter.errors import BudgetExceeded

if TYPE_CHECKING:  # the engine brings torch along, and the wire does not need it
    from adapter.adapter import Adapter, Job


@dataclass(frozen=True, slots=True)
class Part:
    """A stretch of one choice; `ending` is there on its last one, `echo` on its first at most.

    `offsets` counts, for each step, the characters of the answer in front of its token, those of
    the echo included.
    """

    index: int
    steps: tuple[Step, ...]
    offsets: tuple[int, ...]
    ending: Ending | None
    echo: Echo | None = None

    @property
    def text(self) -> str:
        """The text this stretch releases."""
        echo = self.echo.text if self.echo else ""
        rest = self.ending.text if self.ending else ""
        return echo + "".join(step.text for step in self.steps) + rest


@dataclass(slots=True)
class Tally:
    """What all parts of one answer add up to; `bill` is what the upstream was paid for them.

    `rough`: the prompt may have had fewer tokens, as the upstream's tokenizer is unknown.
    """

    prompt_tokens: int
    rough: bool = False
    bill: Bill = field(default_factory=Bill)
    completion_tokens: int = 0
    upstream: Usage = field(default_factory=Usage)

    def add(self, part: Part) -> None:
        self.completion_tokens += len(part.steps)
        if part.ending:
            self.upstream += part.ending.usage


async def generate(adapter: "Adapter", jobs: Sequence["Job"]) -> AsyncGenerator[Part, None]:
    """Every choice of every job, one after the other: a Part for each step and each ending.

    A choice that could not even begin for want of money ends empty, unless it is the first.
    Raises AdapterError kinds.
    """
    for number, job in enumerate(jobs):
        for choice in range(job.request.n):
            index = number * job.request.n + choice
            try:
                async with aclosing(_choice(adapter, job, choice, index)) as parts:
                    async for part in parts:
                        yield part
            except BudgetExceeded:
                if not index:
                    raise
                yield Part(index, (), (), Ending("length", "", Usage(), out_of_budget=True))


async def _choice(
    adapter: "Adapter", job: "Job", choice: int, index: int
) -> AsyncGenerator[Part, None]:
    characters = Characters()
    async with aclosing(adapter.run(job, choice)) as events:
        async for event in events:
            if isinstance(event, Ending):
                yield Part(index, (), (), event)
            elif isinstance(event, Echo):
                characters = Characters(len(event.text))
                yield Part(index, (), (), None, event)
            else:
                yield Part(index, (event,), (characters.before(event.token),), None)


def joined(parts: Iterable[Part]) -> tuple[Part, ...]:
    """One whole Part for each choice."""
    choices: dict[int, list[Part]] = {}
    for part in parts:
        choices.setdefault(part.index, []).append(part)
    return tuple(
        Part(
            index=index,
            steps=tuple(step for part in pieces for step in part.steps),
            offsets=tuple(offset for part in pieces for offset in part.offsets),
            ending=pieces[-1].ending,
            echo=pieces[0].echo,
        )
        for index, pieces in choices.items()
    )


class Characters:
    """Counts characters while bytes go by; an open character counts once it is complete."""

    def __init__(self, count: int = 0) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._count = count

    def before(self, token: bytes) -> int:
        """The characters in front of `token`, which is then passed over."""
        count = self._count
        self._count += len(self._decoder.decode(token))
        return count
