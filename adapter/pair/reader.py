"""Reader: one text as the pair reads it, and the offset of every candidate at its end."""

import asyncio
from collections.abc import Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adapter.errors import ContextTooLong
from adapter.pair.scoring import Scorer
from adapter.pair.window import cut, fits
from tokenizer_maps.bridge import Bridge, Context, Offsets, Plan, Reading, Tree

Floats = NDArray[np.float64]

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
        self._trunks: dict[str, tuple[int, ...]] = {}
        self.context_cut = False

    async def read(self, generated: tuple[int, ...]) -> None:
        """Evaluate the text so far; needs no candidates, so it overlaps the upstream call.

        Raises ContextTooLong where the window is over and nothing may be cut.
        """
        await asyncio.get_running_loop().run_in_executor(self._worker, self._read, generated)

    async def offsets(
        self, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Offsets:
        """Δ of each candidate (upstream ids; −1 = unknown), Σ wᵢ Δᵢ over the experts; nats.

        With their probabilities upstream, the bridge sees which ones deserve a second pass.
        """
        loop = asyncio.get_running_loop()
        return await loop.run_in_executor(self._worker, self._offsets, candidates, chances)

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
            self._trunks[name] = tree.trunk

    def _offsets(
        self, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Offsets:
        readings: dict[str, Reading] = {}
        for plan in {id(p): p for p in self._plans.values()}.values():
            names = [name for name, its in self._plans.items() if its is plan]
            readings |= self._readings(plan, names, candidates, chances)
        anti = readings.pop(ANTIEXPERT)
        return _combined(
            [self._bridge.offsets(reading, anti) for reading in readings.values()],
            [self._weights[name] for name in readings],
        )

    def _readings(
        self,
        plan: Plan,
        names: Sequence[str],
        candidates: Sequence[int],
        chances: Sequence[float] | None,
    ) -> dict[str, Reading]:
        """What the models that share a plan make of the candidates, in one pass or two."""
        sets = self._bridge.sets(plan, candidates, chances)
        masses = [self._scorers[name].masses(sets) for name in names]
        deeper = self._bridge.deeper(plan, sets, masses)
        if deeper is not None and fits(self._as_read(deeper, names[0]), self._window.size):
            for name in names:
                self._scorers[name].evaluate(self._as_read(deeper, name))
            plan, sets = deeper, self._bridge.sets(deeper, candidates, chances)
            masses = [self._scorers[name].masses(sets) for name in names]
        found = zip(names, masses, strict=True)
        return {name: self._bridge.reading(plan, sets, one) for name, one in found}

    def _as_read(self, plan: Plan, name: str) -> Tree:
        """A plan's tree on the trunk as it was cut."""
        return replace(plan.tree, trunk=self._trunks[name])


def _combined(offsets: Sequence[Offsets], weights: Sequence[float]) -> Offsets:
    """Several experts against one anti-expert: Δ = Σ wᵢ Δᵢ; a flag of one is a flag of all."""
    pairs = list(zip(weights, offsets, strict=True))
    bounds = [_bounds(w, o) for w, o in pairs]
    sound = [pair for pair in bounds if pair is not None]
    low, high = (
        (np.sum([pair[i] for pair in sound], axis=0) for i in (0, 1))
        if len(sound) == len(pairs)
        else (None, None)
    )
    return Offsets(
        delta=np.sum([w * o.delta for w, o in pairs], axis=0),
        unscored=np.any([o.unscored for o in offsets], axis=0),
        multi=np.any([o.multi for o in offsets], axis=0),
        clamped=np.any([o.clamped for o in offsets], axis=0),
        capped=np.any([o.capped for o in offsets], axis=0),
        low=low,
        high=high,
    )


def _bounds(weight: float, offsets: Offsets) -> tuple[Floats, Floats] | None:
    """The interval of a weighted offset; a negative weight turns it round."""
    if offsets.low is None or offsets.high is None:
        return None
    low, high = weight * offsets.low, weight * offsets.high
    return np.minimum(low, high), np.maximum(low, high)
