"""Walk: one text as it grows, step by step along what the upstream drafts."""

import asyncio
import time
from collections import Counter
from collections.abc import AsyncGenerator, Iterator, Sequence
from contextlib import aclosing
from dataclasses import replace

from adapter.budget import Budget
from adapter.candidates import END, Draft, Ending, Position, Step, Usage
from adapter.decoding.arrivals import together
from adapter.decoding.frozen import Ask, Frozen
from adapter.decoding.generation import Generation
from adapter.decoding.stepper import Stepper, Where, nothing, place
from adapter.errors import AdapterError, ContextTooLong
from adapter.pair.reader import Place, Reader
from adapter.stopping import Release
from tokenizer_maps.bridge import Offsets


class Walk:
    """Where a text stands, and whether the draft in hand still is the text.

    `strayed`: the draft goes on elsewhere, or was not read further; `ending`: the text has ended.
    """

    def __init__(self, upstream: Frozen, generation: Generation, budget: Budget) -> None:
        self._upstream = upstream
        self._generation = generation
        self._budget = budget
        self._stepper = Stepper(upstream, generation, budget)
        self._release = Release(generation.sampling.stop)
        self._prefix = generation.prefix
        self._counts: Counter[int] = Counter()
        self._usage = Usage()
        self._asked: float | None = None  # when, of a call whose answer the pair has still to read
        self.length = 0
        self.strayed = False
        self.ending: Ending | None = None

    @property
    def over(self) -> bool:
        """Whether the draft in hand is of no more use."""
        return self.strayed or self.ending is not None

    async def drafts(self) -> AsyncGenerator[Draft, None]:
        """The next draft in its pieces; the pair reads the text while the upstream is asked."""
        self.strayed = False
        ask = self._ask()
        run = self._upstream.drafts(self._prefix, ask, self._budget)
        async with aclosing(together(run) if ask.streamed else run) as pieces:
            start = time.monotonic()
            first = await self._beside_reading(pieces)
            if first.usage.calls and not ask.streamed:
                self._asked = start
            yield first
            async for piece in pieces:
                yield piece

    async def read(self, draft: Draft) -> list[tuple[Position, Offsets]]:
        """Every position of a piece that the text may still come to, with its offsets."""
        usage, stride = draft.usage, self._generation.stride
        self._usage += usage
        stride.pace.billed(usage.prompt_tokens, usage.cached_tokens)
        positions = draft.positions[: self._left]
        reader = self._generation.influence.reader
        if reader is None or not positions:
            found = [(position, nothing(position)) for position in positions]
        else:
            found = await self._offsets(reader, positions)
        if self._asked is not None:
            stride.pace.called(len(draft.positions), time.monotonic() - self._asked)
            self._asked = None
        return found

    async def _offsets(
        self, reader: Reader, positions: Sequence[Position]
    ) -> list[tuple[Position, Offsets]]:
        """As many of the positions as the pair's window has room for, one at least."""
        try:
            offsets = await reader.offsets(list(self._places(positions)))
        except ContextTooLong:
            if len(positions) == 1:
                raise
            return await self._offsets(reader, positions[: len(positions) // 2])
        return list(zip(positions, offsets, strict=True))

    async def step(self, position: Position, offsets: Offsets, source: str) -> Step:
        """The token that comes out at a position; the text then stands behind it."""
        fresh = self._rejects and source == "upstream"
        where = Where(self._prefix, self._counts, self.length, fresh)
        taken = await self._stepper.step(position, offsets, where)
        self._usage += taken.usage
        chosen, drafted = taken.token, position.drafted
        self.strayed = drafted is None or drafted.identity != chosen.identity
        if drafted is not None:
            self._generation.stride.walked(not self.strayed)
        text = "" if chosen.special is not None else self._release.feed(chosen.token)
        self.length += 1
        if self._release.stopped or chosen.special == END:
            self._end("stop")
        elif not self._left:
            self._end("length")
        else:
            self._prefix = self._prefix.extend(chosen)
            self._counts[self._prefix.generated[-1]] += 1
        return replace(taken.step, text=text, source=source)

    def passed(self, draft: Draft, steps: int) -> None:
        """So many positions of a piece were walked, and the text is still the draft.

        Where that is all, the upstream may have ended the text there by itself.
        """
        if steps < len(draft.positions):
            self.strayed = True
        elif draft.finish_reason == "stop":
            self._end("stop", "end_unsteered")

    def cut(self, out_of_budget: bool) -> None:
        """Nothing more can be had: the text ends where it stands."""
        self._end("length", out_of_budget=out_of_budget)

    @property
    def _rejects(self) -> bool:
        """Whether drafted tokens are accepted and rejected: the draw needs no noise of its own."""
        sampling = self._generation.sampling
        free = sampling.seed is None and not sampling.greedy
        return free and self._upstream.capabilities.rejection

    @property
    def _left(self) -> int:
        return self._generation.sampling.max_tokens - self.length

    def _ask(self) -> Ask:
        generation, capabilities = self._generation, self._upstream.capabilities
        stride = generation.stride
        # What cannot be gone on with is asked for at once.
        once = capabilities.continues == "none"
        n = self._left if once else stride.length(self._prefix.length, self._left)
        streamed = stride.streams and n > 1 and capabilities.streams
        if streamed or self.length or not (self._rejects and capabilities.several):
            return Ask(n, sampled=self._rejects, streamed=streamed)
        cheaper = once or stride.pace.worth_asking_together(self._prefix.length, n)
        choices = generation.choices - generation.choice if cheaper else 1
        return Ask(n, sampled=True, choices=choices)

    async def _beside_reading(self, pieces: AsyncGenerator[Draft, None]) -> Draft:
        """The first piece, beside the pair's forward; if one fails the other is cancelled."""
        reader = self._generation.influence.reader
        if reader is None:
            return await anext(pieces)
        try:
            async with asyncio.TaskGroup() as group:
                first = group.create_task(_first(pieces))
                group.create_task(reader.read(self._prefix.generated))
        except* AdapterError as errors:
            raise errors.exceptions[0] from None
        return first.result()

    def _places(self, positions: Sequence[Position]) -> Iterator[Place]:
        generated, lexicon = self._prefix.generated, self._generation.influence.lexicon
        for position in positions:
            yield place(generated, position, lexicon)
            drafted = position.drafted
            if drafted is None or drafted.id is None:
                return
            generated = (*generated, drafted.id)

    def _end(self, reason: str, *flags: str, out_of_budget: bool = False) -> None:
        text = self._release.flush()
        self.ending = Ending(reason, text, self._usage, frozenset(flags), out_of_budget)


async def _first(pieces: AsyncGenerator[Draft, None]) -> Draft:
    return await anext(pieces)
