"""The loop: draft, offsets, steps, and again where the text left the draft."""

from collections.abc import AsyncGenerator
from contextlib import aclosing

from adapter.budget import Budget
from adapter.candidates import Ending, Step
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation
from adapter.decoding.walk import Walk
from adapter.errors import BudgetExceeded, ContextTooLong, UpstreamMalformed


async def decode(
    upstream: Frozen, generation: Generation, budget: Budget
) -> AsyncGenerator[Step | Ending, None]:
    """The steps of one choice, then its Ending.

    A draft is walked position by position. While the token that comes out is the drafted one, the
    next position stands where the text now does; the rest is left at the first other token.
    Errors before the first token are raised; a budget or window that is over later ends the answer
    with finish_reason `length`.
    """
    walk = Walk(upstream, generation, budget)
    while walk.ending is None:
        try:
            async with aclosing(_steps(walk)) as steps:
                async for step in steps:
                    yield step
        except (BudgetExceeded, ContextTooLong) as error:
            if walk.length == 0:
                raise
            walk.cut(isinstance(error, BudgetExceeded))
    yield walk.ending


async def _steps(walk: Walk) -> AsyncGenerator[Step, None]:
    """The steps along one draft."""
    before = walk.length
    async with aclosing(walk.drafts()) as drafts:
        async for draft in drafts:
            read = await walk.read(draft)
            for position, offsets in read:
                yield await walk.step(position, offsets, draft.source)
                if walk.over:
                    return
            walk.passed(draft, len(read))
            if walk.over:
                return
    if walk.length == before:
        raise UpstreamMalformed("the upstream's answer has no token")
