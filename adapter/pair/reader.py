"""Reader: one text as the pair reads it, and the offset of every candidate at its end."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np

from adapter.errors import ContextTooLong
from adapter.pair.scoring import Scorer
from adapter.pair.window import cut, fits
from tokenizer_maps.bridge import Bridge, Context, Offsets, Plan

ANTIEXPERT = ""
"""The anti-expert's key among a pair's models; experts have names of their own."""


@dataclass(frozen=True, slots=True)
class Window:
    """The pair's context window: its size, and how many first ids of a rendering always stay.

    `head` None refuses a text that does not fit.
    """

    size: int
    head: int | None


class Reader:
    """Reads a growing text with every model of the pair; work runs on the pair's one worker.

    `contexts` holds each model's own rendering of the prompt; the generated ids are common.
    """

    def __init__(
        self,
        scorers: Mapping[str, Scorer],
        bridge: Bridge,
        contexts: Mapping[str, Context],
        weights: Mapping[str, float],
        window: Window,
        worker: Executor,
    ) -> None:
        self._scorers = scorers
        self._bridge = bridge
        self._contexts = contexts
        self._weights = weights
        self._window = window
        self._worker = worker
        self._plans: dict[str, Plan] = {}
        self.context_cut = False

    async def read(self, generated: tuple[int, ...]) -> None:
        """Evaluate the text so far; needs no candidates, so it overlaps the upstream call.

        Raises ContextTooLong where the window is over and nothing may be cut.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self._read, generated)

    async def offsets(self, candidates: Sequence[int]) -> Offsets:
        """Δ of each candidate (upstream ids; −1 = unknown), Σ wᵢ Δᵢ over the experts; nats."""
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._offsets, candidates)

    def _read(self, generated: tuple[int, ...]) -> None:
        self._plans = {}
        planned: dict[Context, Plan] = {}
        for name, scorer in self._scorers.items():
            context = replace(self._contexts[name], generated=generated)
            plan = planned.get(context) or self._bridge.plan(context)
            self._plans[name] = planned[context] = plan
            tree = plan.tree
            if not fits(tree, self._window.size):
                if self._window.head is None:
                    raise ContextTooLong(
                        f"the text is longer than the pair's context window of "
                        f"{self._window.size} tokens; shorten it, or set pair.context: tail"
                    )
                tree = cut(tree, self._window.size, self._window.head)
                self.context_cut = True
            scorer.evaluate(tree)

    def _offsets(self, candidates: Sequence[int]) -> Offsets:
        sets = {id(p): self._bridge.sets(p, candidates) for p in self._plans.values()}
        readings = {}
        for name, scorer in self._scorers.items():
            plan = self._plans[name]
            wanted = sets[id(plan)]
            readings[name] = self._bridge.reading(plan, wanted, scorer.masses(wanted))
        anti = readings.pop(ANTIEXPERT)
        return _combined(
            [self._bridge.offsets(reading, anti) for reading in readings.values()],
            [self._weights[name] for name in readings],
        )


def _combined(offsets: Sequence[Offsets], weights: Sequence[float]) -> Offsets:
    """Several experts against one anti-expert: Δ = Σ wᵢ Δᵢ; a flag of one is a flag of all."""
    return Offsets(
        delta=np.sum([w * o.delta for w, o in zip(weights, offsets, strict=True)], axis=0),
        unscored=np.any([o.unscored for o in offsets], axis=0),
        multi=np.any([o.multi for o in offsets], axis=0),
        clamped=np.any([o.clamped for o in offsets], axis=0),
    )
