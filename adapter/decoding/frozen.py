"""Frozen: an upstream as one request sees it; the first distribution seen at a prefix stays."""

import asyncio
from collections import defaultdict
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace

from adapter.budget import Budget
from adapter.candidates import END, Candidate, Draft, Position, Usage
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.upstream import Upstream

NOTHING = Draft((), None, Usage())
"""What a stream that ends at once has brought."""


@dataclass(frozen=True, slots=True)
class Ask:
    """How a run is asked for: its length, whether the upstream draws it, whether it streams.

    `choices`: so many siblings want one of their own, which one call may bring.
    """

    n: int
    sampled: bool = False
    streamed: bool = False
    choices: int = 1


class Frozen:
    """Remembers every position of a request by its prefix, for all of its choices.

    A choice that comes to a prefix where another one was gets the same distribution, and pays
    nothing. Choices at one prefix wait for the first of them to ask. A draft that was drawn for
    one choice is handed to one alone: it takes it by rejection, the others see its distributions.
    Where nothing can be gone on with, each that draws has a draft of its own.
    """

    def __init__(self, upstream: Upstream) -> None:
        self._upstream = upstream
        self._seen: dict[bytes, Position | None] = {}  # None: the text ends, and END is hidden
        self._scored: defaultdict[bytes, dict[int, float | None]] = defaultdict(dict)
        self._given: dict[tuple[bytes, tuple[int | None, ...]], tuple[Position, ...]] = {}
        self._drawn: dict[bytes, list[Draft]] = {}  # for choices that are still to come
        self._asking: defaultdict[bytes, asyncio.Lock] = defaultdict(asyncio.Lock)

    @property
    def capabilities(self) -> Capabilities:
        """The upstream's own."""
        return self._upstream.capabilities

    async def drafts(self, prefix: Prefix, ask: Ask, budget: Budget) -> AsyncGenerator[Draft, None]:
        """A run behind the prefix, in one piece or, streamed, as it comes."""
        async with self._asking[prefix.digest]:
            first, rest = self._at_hand(prefix, ask), None
            if first is None:
                rest = self._asked(prefix, ask, budget)
                first = await anext(rest, NOTHING)
        yield first
        if rest is not None:
            async with aclosing(rest):
                async for draft in rest:
                    yield draft

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Budget
    ) -> tuple[dict[int, float], Usage]:
        """Log-probabilities of hidden next tokens, in nats, asked for once each."""
        seen = self._scored[prefix.digest]
        missing = [token for token in ids if token not in seen]
        usage = Usage()
        if missing:
            found, usage = await self._upstream.score(prefix, missing, budget)
            seen |= {token: found.get(token) for token in missing}
        scores = {token: seen[token] for token in ids}
        return {token: score for token, score in scores.items() if score is not None}, usage

    async def given(
        self, prefix: Prefix, tokens: Sequence[Candidate], budget: Budget
    ) -> tuple[tuple[Position, ...], Usage]:
        """The positions at which given tokens stand behind a prefix, and what that cost.

        Each one's `drafted` is the given token with its log-probability, and None where the
        upstream does not tell that. In one call where it scores texts, else a call a token, and
        one more for each token that it did not show.
        """
        if self.capabilities.text_scoring != "echo":
            return await self._forced(prefix, tokens, budget)
        asked = (prefix.digest, tuple(token.id for token in tokens))
        known = self._given.get(asked)
        if known is not None:
            return known, Usage()
        whole = prefix
        for token in tokens:
            whole = whole.extend(token)
        draft = await self._upstream.positions(whole.ids, budget)
        found = draft.positions[len(prefix.ids) - 1 :]
        given = self._given[asked] = found[: len(tokens)]
        self._keep(whole, replace(draft, positions=found[len(tokens) :]))
        return given, draft.usage

    async def _forced(
        self, prefix: Prefix, tokens: Sequence[Candidate], budget: Budget
    ) -> tuple[tuple[Position, ...], Usage]:
        positions, usage = [], Usage()
        for token in tokens:
            async with aclosing(self.drafts(prefix, Ask(1), budget)) as drafts:
                draft = await anext(drafts)
            usage += draft.usage
            if not draft.positions:
                break
            position = draft.positions[0]
            taken = next((c for c in position.candidates if c.id == token.id), None)
            if taken is None and token.id is not None and self.capabilities.scoring is not None:
                scores, spent = await self.score(prefix, [token.id], budget)
                usage += spent
                found = scores.get(token.id)
                taken = None if found is None else replace(token, logprob=found)
            positions.append(replace(position, drafted=taken))
            prefix = prefix.extend(token)
        return tuple(positions), usage

    def _at_hand(self, prefix: Prefix, ask: Ask) -> Draft | None:
        """What a choice is given without a call: a draft of its own, else what was seen."""
        drawn = self._drawn.get(prefix.digest)
        if drawn and ask.sampled:
            return drawn.pop(0)
        return None if self._alone(prefix, ask) else self._known(prefix, ask.n)

    def _alone(self, prefix: Prefix, ask: Ask) -> bool:
        """Whether a choice draws for itself: where it left another's draw it could not go on."""
        return ask.sampled and not prefix.generated and self.capabilities.continues == "none"

    def _known(self, prefix: Prefix, n: int) -> Draft | None:
        """What the request has seen from here on; None where that is nothing."""
        positions: list[Position] = []
        while len(positions) < n and prefix.digest in self._seen:
            position = self._seen[prefix.digest]
            if position is None:
                return Draft(tuple(positions), "stop", Usage(), source="cache")
            positions.append(position)
            if not _goes_on(position):
                break
            prefix = _behind(prefix, position)
        return Draft(tuple(positions), None, Usage(), source="cache") if positions else None

    async def _asked(self, prefix: Prefix, ask: Ask, budget: Budget) -> AsyncGenerator[Draft, None]:
        if ask.choices > 1 and prefix.digest not in self._drawn:
            drafts = await self._upstream.draws(prefix, ask.n, budget, ask.choices)
            first, *self._drawn[prefix.digest] = [self._keep(prefix, d)[0] for d in drafts]
            yield first
            return
        if not ask.streamed:
            draft = await self._upstream.draft(prefix, ask.n, budget, ask.sampled)
            yield self._keep(prefix, draft)[0]
            return
        stream = self._upstream.stream(prefix, ask.n, budget, ask.sampled)
        async with aclosing(stream) as pieces:
            async for piece in pieces:
                piece, prefix = self._keep(prefix, piece)
                yield piece

    def _keep(self, prefix: Prefix, draft: Draft) -> tuple[Draft, Prefix]:
        """Remember what was not seen before; the draft with what was, and the prefix behind it."""
        positions: list[Position] = []
        for position in draft.positions:
            first = self._seen.setdefault(prefix.digest, position) or position
            positions.append(replace(first, drafted=position.drafted))
            if not _goes_on(position):
                break
            prefix = _behind(prefix, position)
        else:
            if draft.finish_reason == "stop":
                self._seen.setdefault(prefix.digest, None)
        return replace(draft, positions=tuple(positions)), prefix


def _goes_on(position: Position) -> bool:
    """Whether a run can have another position behind this one."""
    drafted = position.drafted
    return drafted is not None and drafted.id is not None and drafted.special != END


def _behind(prefix: Prefix, position: Position) -> Prefix:
    drafted = position.drafted
    if drafted is None:
        raise ValueError("nothing stands behind a position without a drafted token")
    return prefix.extend(drafted)
