"""Answering: a request that was understood, begun; whoever asked gets it whole or as events."""

import asyncio
import time
from collections.abc import AsyncGenerator, Callable, Sequence
from contextlib import aclosing
from dataclasses import dataclass
from typing import TYPE_CHECKING, ParamSpec, TypeVar

from adapter.budget import Budget
from adapter.service.parts import Part, Tally, generate, joined
from adapter.service.render import Dialect, Envelope, Json, View, usage
from adapter.service.stream import events
from adapter.service.wire import Asked
from adapter.upstream.lookups import Lookups

if TYPE_CHECKING:  # the engine brings torch along, and the wire does not need it
    from adapter.adapter import Adapter

P = ParamSpec("P")
T = TypeVar("T")

SHORT = 1024
"""Bytes of a body, or characters and ids of its prompts, that take a few milliseconds at most."""


@dataclass(frozen=True, slots=True)
class Answering:
    """The parts of an answer, and all it takes to write them; they can be taken once."""

    parts: AsyncGenerator[Part, None]
    envelope: Envelope
    view: View
    tally: Tally
    lookups: Sequence[Lookups]

    async def whole(self) -> Json:
        """The whole answer. Raises AdapterError kinds."""
        async with aclosing(self.parts):
            collected = [part async for part in self.parts]
        for part in collected:
            self.tally.add(part)
        dialect = self.envelope.dialect
        choices = [dialect.whole(part, self.view) for part in joined(collected)]
        return self.envelope.wrap(dialect.whole_object, choices, usage=usage(self.tally))

    async def events(self, include_usage: bool) -> AsyncGenerator[bytes, None]:
        """A stream whose first part is there, so that it is sound so far.

        Raises AdapterError kinds; what fails later is an event.
        """
        first = await anext(self.parts)
        chained = _chain(first, self.parts)
        return events(chained, self.envelope, self.view, self.tally, include_usage)


async def begin(
    adapter: "Adapter", asked: Asked, budget: Budget, dialect: Dialect, request_id: str
) -> Answering:
    """Check and render all that was asked; no upstream call is made yet. Raises BadRequest."""
    jobs = [await unblocking(asked.length, adapter.prepare, r, budget) for r in asked.requests]
    return Answering(
        parts=generate(adapter, jobs),
        envelope=Envelope(dialect, request_id, int(time.time()), asked.model),
        view=View(asked.logprobs, asked.trace, jobs[0].alpha),
        tally=Tally(
            sum(job.prompt_tokens for job in jobs), any(job.rough for job in jobs), budget.bill
        ),
        lookups=tuple(job.lookups for job in jobs),
    )


async def unblocking(length: int, work: Callable[P, T], *args: P.args, **kwargs: P.kwargs) -> T:
    """What work on so much input gives; other requests are answered all the while.

    A megabyte takes a while to read or to tokenize and goes to a thread; to bring a short one
    there and back takes longer than the work.
    """
    if length > SHORT:
        return await asyncio.to_thread(work, *args, **kwargs)
    return work(*args, **kwargs)


async def _chain(first: Part, rest: AsyncGenerator[Part, None]) -> AsyncGenerator[Part, None]:
    async with aclosing(rest):
        yield first
        async for part in rest:
            yield part
