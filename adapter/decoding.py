"""Decoding: the loop from draft and offsets to emitted steps."""

import asyncio
import math
from collections import Counter
from collections.abc import AsyncGenerator
from dataclasses import dataclass, replace
from typing import Protocol

import numpy as np

from adapter.budget import Budget
from adapter.candidates import END, Alternative, Candidate, Draft, Ending, Position, Step, Usage
from adapter.errors import AdapterError, BadRequest, BudgetExceeded, ContextTooLong
from adapter.pair.reader import Place, Reader
from adapter.prefix import Prefix
from adapter.request import Sampling
from adapter.steering import Adapted, draw, hidden_wishes, noise, penalised, steer
from adapter.stopping import Release
from tokenizer_maps.bridge import Offsets

_FLAGS = ("unscored", "multi", "clamped", "capped")
"""What a step says of its offset."""


class Drafting(Protocol):
    """An upstream behind its cache and budget."""

    async def draft(self, prefix: Prefix, n: int, budget: Budget) -> Draft:
        """A run of positions behind the prefix."""
        ...


@dataclass(frozen=True, slots=True)
class Generation:
    """One choice to generate: how to draw, how strongly to steer, what to show.

    `reader` None means that no offset is needed (α = 0); `shown` candidates go into each step.
    """

    prefix: Prefix
    sampling: Sampling
    alpha: float
    seed: int
    choice: int
    shown: int
    reader: Reader | None


async def decode(
    upstream: Drafting, generation: Generation, budget: Budget
) -> AsyncGenerator[Step | Ending, None]:
    """The steps of one choice, then its Ending.

    Errors before the first token are raised; a budget or window that is over later ends the
    answer with finish_reason `length`.
    """
    sampling, prefix = generation.sampling, generation.prefix
    release = Release(sampling.stop)
    counts: Counter[int] = Counter()
    usage = Usage()
    for at in range(sampling.max_tokens):
        try:
            draft = await _draft_and_read(upstream, generation.reader, prefix, budget)
        except (BudgetExceeded, ContextTooLong):
            if at == 0:
                raise
            break
        usage += draft.usage
        if not draft.positions:
            yield Ending("stop", release.flush(), usage, frozenset({"end_unsteered"}))
            return
        step, chosen = await _step(generation, prefix, draft, counts, at)
        text = "" if step.special else release.feed(chosen.token)
        yield replace(step, text=text)
        if release.stopped or chosen.special == END:
            yield Ending("stop", release.flush(), usage)
            return
        prefix = prefix.extend(chosen)
        counts[prefix.generated[-1]] += 1
    yield Ending("length", release.flush(), usage)


async def _draft_and_read(
    upstream: Drafting, reader: Reader | None, prefix: Prefix, budget: Budget
) -> Draft:
    """One upstream call beside the pair's forward; if one fails the other is cancelled."""
    drafting = upstream.draft(prefix, 1, budget)
    if reader is None:
        return await drafting
    try:
        async with asyncio.TaskGroup() as group:
            draft = group.create_task(drafting)
            group.create_task(reader.read(prefix.generated))
    except* AdapterError as errors:
        raise errors.exceptions[0] from None
    return draft.result()


async def _step(
    generation: Generation, prefix: Prefix, draft: Draft, counts: Counter[int], at: int
) -> tuple[Step, Candidate]:
    """The step at a draft's first position, and the candidate that was drawn."""
    position, reader = draft.positions[0], generation.reader
    offsets = await _offsets(reader, prefix, position)
    adapted = steer(position, offsets.delta, generation.alpha)
    index = _draw(generation, adapted, counts, at)
    flags = {name for name in _FLAGS if getattr(offsets, name)[index]}
    if reader is not None and reader.context_cut:
        flags.add("context_cut")
    chosen = position.candidates[index]
    step = Step(
        token=chosen.token,
        logprob=float(adapted.logprobs[index]),
        upstream_logprob=chosen.logprob,
        offset=float(adapted.offsets[index]),
        rank=index,
        status="certified" if certified(position, generation) else "truncated",
        flags=frozenset(flags),
        source=draft.source,
        special=chosen.special,
        shown=_alternatives(adapted, generation.shown),
    )
    return step, chosen


def certified(position: Position, generation: Generation) -> bool:
    """Whether no hidden token can have been the better choice.

    True where nothing is hidden, and for the upstream's own favourite when nothing moves a score.
    """
    sampling = generation.sampling
    unmoved = sampling.greedy and not (
        generation.alpha
        or sampling.logit_bias
        or sampling.presence_penalty
        or sampling.frequency_penalty
    )
    return position.hidden == 0.0 or unmoved


def _draw(generation: Generation, adapted: Adapted, counts: Counter[int], at: int) -> int:
    sampling = generation.sampling
    wishes = hidden_wishes(adapted.position, sampling.logit_bias)
    if wishes:
        raise BadRequest(
            f"logit_bias raises token {wishes[0]}, which the upstream did not show at step {at}; "
            "raise only tokens among its top candidates, or have it show more (top_logprobs)",
            param="logit_bias",
        )
    variates = None
    if not sampling.greedy:
        variates = noise(generation.seed, generation.choice, at, adapted.words())
    try:
        return draw(adapted, penalised(adapted, sampling, counts), sampling, variates)
    except ValueError as error:
        raise BadRequest(
            f"logit_bias forbids every candidate at step {at}", param="logit_bias"
        ) from error


async def _offsets(reader: Reader | None, prefix: Prefix, position: Position) -> Offsets:
    ids = tuple(-1 if c.id is None else c.id for c in position.candidates)
    if reader is not None:
        chances = tuple(math.exp(c.logprob) for c in position.candidates)
        return (await reader.offsets([Place(prefix.generated, ids, chances)]))[0]
    nothing = np.zeros(len(ids), dtype=np.bool_)
    return Offsets(np.zeros(len(ids)), nothing, nothing, nothing, nothing)


def _alternatives(adapted: Adapted, count: int) -> tuple[Alternative, ...]:
    """The best candidates by adapted log-probability."""
    best = np.argsort(-adapted.logprobs, kind="stable")[:count]
    return tuple(
        Alternative(
            token=adapted.position.candidates[i].token,
            upstream_logprob=adapted.position.candidates[i].logprob,
            offset=float(adapted.offsets[i]),
            logprob=float(adapted.logprobs[i]),
            special=adapted.position.candidates[i].special,
        )
        for i in best
    )
