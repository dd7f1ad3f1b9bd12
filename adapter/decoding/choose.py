"""Choose: labels scored at the next position, and the likeliest of them as the answer."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import aclosing
from dataclasses import replace

from adapter.budget import Budget
from adapter.candidates import Candidate, Ending, Position, Usage, Verdict
from adapter.certificate import Tail, expanded
from adapter.choosing import Weight, best, bound, verdict, weight
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation
from adapter.decoding.given import given
from adapter.decoding.stepper import nothing, place
from adapter.decoding.walk import Walk
from adapter.errors import BadRequest, BudgetExceeded, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.steering import steer
from tokenizer_maps.bridge import Offsets

Path = tuple[Candidate, ...]
"""One spelling of a label: the tokens that it takes."""

Labels = Mapping[str, Sequence[Path]]


async def choose(
    upstream: Frozen, generation: Generation, labels: Labels, budget: Budget
) -> Ending:
    """The likeliest label as an answer, with the score of every label.

    One call where the upstream shows every label, and each is one token. A label it does not show
    is scored where that can be; each spelling of several tokens takes calls of its own.
    Raises BadRequest where there is nothing to choose by.
    """
    alone = replace(generation, sampling=replace(generation.sampling, max_tokens=1))
    walk = Walk(upstream, alone, budget)
    async with aclosing(walk.drafts()) as drafts:
        draft = await anext(drafts)
    read = await walk.read(draft)
    if not read:
        raise UpstreamMalformed("the upstream ends the text here, and shows nothing for a label")
    choosing = _Choosing(upstream, generation, labels, budget)
    await choosing.at(*read[0])
    found = await choosing.verdict()
    if found is None:
        raise BadRequest(
            "the upstream shows none of the labels here: end the prompt so that one of them comes "
            "next, or have it show more (top_logprobs)",
            param="steering.choices",
        )
    usage = draft.usage + choosing.usage
    return Ending("stop", best(found.labels).text, usage, verdict=found)


class _Choosing:
    """One position and what is known there of every label; `usage`: what was asked further."""

    def __init__(
        self, upstream: Frozen, generation: Generation, labels: Labels, budget: Budget
    ) -> None:
        self.usage = Usage()
        self._upstream = upstream
        self._generation = generation
        self._labels = labels
        self._budget = budget

    async def at(self, position: Position, offsets: Offsets) -> None:
        """See the position like this from now on."""
        influence = self._generation.influence
        reader, alpha = influence.reader, influence.alpha
        hideable = influence.lexicon.hideable  # None: nobody can list what is hidden
        moved = hideable is not None and alpha and position.hidden > 0.0
        whole = await reader.whole(self._prefix.generated) if reader and moved else None
        imputed = whole if influence.impute else None
        margin = self._upstream.capabilities.margin * len(position.candidates)
        self._adapted = steer(position, offsets.delta, alpha, imputed, hideable)
        self._tail = Tail(alpha, whole, hideable, influence.limit, margin)

    async def verdict(self) -> Verdict | None:
        """What can be said of the labels once all was scored that can be."""
        hidden = [path[0] for paths in self._missing() for path in paths]
        if hidden and self._upstream.capabilities.scoring is not None:
            await self._expand(dict.fromkeys(token.id for token in hidden))
        weights = {
            label: [await self._weight(path) for path in paths]
            for label, paths in self._labels.items()
        }
        return verdict(weights, self._tail.alpha)

    def _missing(self) -> Iterator[Sequence[Path]]:
        """The spellings of labels none of which begins with a candidate."""
        for paths in self._labels.values():
            if not any(self._first(path) for path in paths):
                yield paths

    async def _expand(self, tokens: Iterable[int | None]) -> None:
        """Have hidden tokens join the candidates, if a call can be paid."""
        ids = [token for token in tokens if token is not None]
        try:
            exact, usage = await self._upstream.score(self._prefix, ids, self._budget)
        except BudgetExceeded:
            return
        self.usage += usage
        influence = self._generation.influence
        position = expanded(self._adapted.position, exact, influence.lexicon.of_id)
        if influence.reader is None:
            await self.at(position, nothing(position))
            return
        asked = place(self._prefix.generated, position, influence.lexicon)
        (offsets,) = await influence.reader.offsets([asked])
        await self.at(position, offsets)

    async def _weight(self, path: Path) -> Weight:
        """What a spelling weighs: its first token, and those behind it."""
        first, *rest = path
        found = self._first(path)
        if found is None:
            return bound(self._adapted, first.id or 0, self._tail)
        if not rest:
            return found
        return found.then(await self._rest(first, rest))

    async def _rest(self, first: Candidate, rest: Sequence[Candidate]) -> Weight:
        """What tokens weigh behind a first one; what the upstream cannot tell is at most 1."""
        prefix = self._prefix.extend(first)
        positions, usage = await self._upstream.given(prefix, rest, self._budget)
        self.usage += usage
        told = [position for position in positions if position.drafted is not None]
        generation = replace(self._generation, prefix=prefix)
        known = len(told) == len(rest)
        weights, alphas = Weight(0.0, 0.0, 0.0, known), (self._tail.alpha,)
        if not known:
            return weights
        (steps,) = await given(self._upstream, generation, told, self._budget, alphas)
        for step in steps:
            weights = weights.then(Weight(step.logprob, step.upstream_logprob, step.offset))
        return weights

    def _first(self, path: Path) -> Weight | None:
        """What the first token of a spelling weighs, None where it is not shown."""
        return weight(self._adapted, path[0], self._tail.alpha, alike=len(path) == 1)

    @property
    def _prefix(self) -> Prefix:
        return self._generation.prefix
