"""Given: the steps of a text that is given, not drawn."""

from collections.abc import Sequence
from dataclasses import replace

from adapter.budget import Budget
from adapter.candidates import Candidate, Position, Step
from adapter.certificate import expanded
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation
from adapter.decoding.stepper import Stepper, Where, nothing, place
from adapter.request import Sampling
from tokenizer_maps.steps import Whole

_AT_ONCE = 64
"""Places that the pair is asked about at once; it holds a row of its vocabulary for each."""


async def given(
    upstream: Frozen,
    generation: Generation,
    positions: Sequence[Position],
    budget: Budget,
    alphas: Sequence[float],
) -> list[list[Step]]:
    """The step of each position's `drafted` token, which joins the candidates where it is none.

    A list of steps for each of `alphas`, which take the place of the generation's own; the pair
    reads every place once for all of them. The positions lie behind the generation's prefix and
    one another; nothing is asked upstream.
    """
    steppers = [_stepper(upstream, generation, budget, alpha) for alpha in alphas]
    prefix, reader = generation.prefix, generation.influence.reader
    steps: list[list[Step]] = [[] for _ in alphas]
    for at in range(0, len(positions), _AT_ONCE):
        joined = [_joined(position) for position in positions[at : at + _AT_ONCE]]
        places = [Where(prefix, {}, at, fresh=False)]
        for _, token in joined:
            prefix = prefix.extend(token)
            places.append(Where(prefix, {}, at, fresh=False))
        if reader is None:
            found = [nothing(position) for position, _ in joined]
        else:
            lexicon = generation.influence.lexicon
            asked = zip(places, joined, strict=False)
            found = await reader.offsets(
                [place(w.prefix.generated, p, lexicon) for w, (p, _) in asked]
            )
        for (position, _), offsets, where in zip(joined, found, places, strict=False):
            whole = await _whole(steppers, position, where)
            for stepper, its in zip(steppers, steps, strict=True):
                its.append(stepper.given(position, offsets, where, whole))
    return steps


def _stepper(upstream: Frozen, generation: Generation, budget: Budget, alpha: float) -> Stepper:
    influence = replace(generation.influence, alpha=alpha)
    return Stepper(upstream, replace(generation, sampling=Sampling(), influence=influence), budget)


async def _whole(steppers: Sequence[Stepper], position: Position, where: Where) -> Whole | None:
    """The pair's view of what is hidden, read once if any strength needs it."""
    for stepper in steppers:
        if stepper.needs_whole(position):
            return await stepper.whole(position, where)
    return None


def _joined(position: Position) -> tuple[Position, Candidate]:
    """The position with its `drafted` token among the candidates, and the token."""
    token = position.drafted
    if token is None or token.id is None:
        raise ValueError("no token is given")
    return expanded(position, {token.id: token.logprob}, lambda *_: token), token
