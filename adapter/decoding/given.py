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

_AT_ONCE = 64
"""Places that the pair is asked about at once; it holds a row of its vocabulary for each."""


async def given(
    upstream: Frozen, generation: Generation, positions: Sequence[Position], budget: Budget
) -> list[Step]:
    """The step of each position's `drafted` token, which joins the candidates where it is none.

    The positions lie behind the generation's prefix and one another; nothing is asked upstream.
    """
    stepper = Stepper(upstream, replace(generation, sampling=Sampling()), budget)
    prefix, reader = generation.prefix, generation.influence.reader
    steps: list[Step] = []
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
            steps.append(await stepper.given(position, offsets, where))
    return steps


def _joined(position: Position) -> tuple[Position, Candidate]:
    """The position with its `drafted` token among the candidates, and the token."""
    token = position.drafted
    if token is None or token.id is None:
        raise ValueError("no token is given")
    return expanded(position, {token.id: token.logprob}, lambda *_: token), token
