"""Reader: one text as the pair reads it, and the offset of every candidate at its places."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TypeAlias
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from adapter.errors import ContextTooLong
from adapter.pair.combining import combined, combined_whole
from adapter.pair.engine import Engine, Steps, Wants
from adapter.pair.network import Network
from adapter.pair.rows import masses
from adapter.pair.text import Text
from adapter.pair.trees import merge
from adapter.pair.window import cut, fits
from tokenizer_maps.bridge import (
    Bridge,
    Context,
    Masses,
    Offsets,
    Plan,
    Reading,
    Sets,
    Tree,
)
from tokenizer_maps.steps import Rows, Survey, Whole

Ints = NDArray[np.int64]

ANTIEXPERT = ""
"""The anti-expert's key among a pair's models; experts have names of their own."""


@dataclass(frozen=True, slots=True)
class Place:
    """A position to read: the upstream ids generated before it, its candidates and their chances.

    ``candidates`` are upstream ids, −1 for unknown ones; ``chances`` their probabilities upstream.
    """

    generated: tuple[int, ...]
    candidates: tuple[int, ...]
    chances: tuple[float, ...]


@dataclass(frozen=True, slots=True)
class Window:
    """The pair's context window: its size, and how many first ids of a rendering always stay.

    ``head`` None refuses a text that does not fit.
    """

    size: int
    head: int | None


@dataclass(frozen=True, slots=True, eq=False)
class _Laid:
    """What the models ``names``, which share a rendering, read at some places.

    ``trees[j]`` is the tree of ``plans[j]`` as it was cut; ``tree`` is all of them, and ``maps``
    their nodes in it.
    """

    names: tuple[str, ...]
    plans: tuple[Plan, ...]
    trees: tuple[Tree, ...]
    tree: Tree
    maps: tuple[Ints, ...]


_Asked: TypeAlias = tuple[list[Sets], dict[str, list[Masses]]]


class Reader:
    """Reads a growing text with every model of the pair; work runs on the pair's one worker.

    ``contexts`` holds each model's own rendering of the prompt; the generated ids are common.
    ``context_cut``: whether a text was longer than the window and lost its middle.
    """

    def __init__(
        self,
        engine: Engine,
        texts: Mapping[str, tuple[Network, Text]],
        bridge: Bridge,
        contexts: Mapping[str, Context],
        weights: Mapping[str, float],
        window: Window,
    ) -> None:
        self._engine = engine
        self._texts = texts
        self._bridge = bridge
        self._weights = weights
        self._window = window
        self._sharing: dict[Context, tuple[str, ...]] = {}
        for name in texts:
            context = contexts[name]
            self._sharing[context] = (*self._sharing.get(context, ()), name)
        self._plans: dict[Context, Plan] = {}
        self._last: tuple[tuple[tuple[int, ...], ...], list[_Laid]] = (), []
        self.context_cut = False
        self._release = finalize(self, engine.release, tuple(texts.values()))
        self._release.atexit = False

    async def read(self, generated: tuple[int, ...]) -> None:
        """Evaluate the text so far; needs no candidates, so it overlaps the upstream call.

        Raises ContextTooLong where the window is over and nothing may be cut.
        """
        await self._engine.run(self._read([generated]))

    async def offsets(self, places: Sequence[Place]) -> list[Offsets]:
        """Δ of each place's candidates, Σ wᵢ Δᵢ over the experts; nats.

        The places lie along one path, a draft, and are read in one forward a model, in a second
        one where the bridge looks deeper. What is read next along that path costs only what is
        new. Raises ContextTooLong as `read`, for the longest of them.
        """
        return await self._engine.run(self._offsets(places)) if places else []

    async def whole(self, generated: tuple[int, ...]) -> Whole:
        """What the pair makes of the whole upstream vocabulary behind a text."""
        return await self._engine.run(self._whole(generated))

    def close(self) -> None:
        """Free what was read for this text, as soon as the round that runs is over."""
        self._release()
        self._engine.wake()

    # --- on the worker

    def _read(self, places: Sequence[tuple[int, ...]]) -> Steps[list[_Laid]]:
        laid = self._lay(places)
        yield self._wants(laid)
        return laid

    def _offsets(self, places: Sequence[Place]) -> Steps[list[Offsets]]:
        laid = yield from self._read([place.generated for place in places])
        found = [self._ask(one, places) for one in laid]
        further = [self._deeper(one, *asked) for one, asked in zip(laid, found, strict=True)]
        changed = [new for new, old in zip(further, laid, strict=True) if new is not old]
        if changed:
            yield self._wants(changed)
            found = [
                asked if new is old else self._ask(new, places)
                for new, old, asked in zip(further, laid, found, strict=True)
            ]
        return self._combined(further, found)

    def _whole(self, generated: tuple[int, ...]) -> Steps[Whole]:
        places, laid = self._last
        if generated not in places:
            places, laid = (generated,), self._lay([generated])
        yield self._wants(laid)
        j = places.index(generated)
        surveys = {name: self._survey(one, j, name) for one in laid for name in one.names}
        anti = surveys.pop(ANTIEXPERT)
        weights = [self._weights[name] for name in surveys]
        return combined_whole(self._bridge, list(surveys.values()), anti, weights)

    def _lay(self, places: Sequence[tuple[int, ...]]) -> list[_Laid]:
        """Plan what is read at some places; a place planned before keeps its plan."""
        known, self._plans = self._plans, {}
        laid = []
        for context, names in self._sharing.items():
            plans = []
            for generated in places:
                at = replace(context, generated=generated)
                self._plans[at] = known[at] if at in known else self._bridge.plan(at)
                plans.append(self._plans[at])
            laid.append(_laid(names, plans, [self._fitting(plan.tree) for plan in plans]))
        self._last = tuple(places), laid
        return laid

    def _fitting(self, tree: Tree) -> Tree:
        if fits(tree, self._window.size):
            return tree
        if self._window.head is None:
            raise ContextTooLong(
                f"the text is longer than the pair's context window of {self._window.size} "
                "tokens; shorten it, or set pair.context: tail"
            )
        self.context_cut = True
        return cut(tree, self._window.size, self._window.head)

    def _wants(self, laid: Sequence[_Laid]) -> Wants:
        return {self._texts[name]: one.tree for one in laid for name in one.names}

    def _ask(self, laid: _Laid, places: Sequence[Place]) -> _Asked:
        """The sums at every place, and what each model gives for them."""
        sets = [
            self._bridge.sets(plan, place.candidates, place.chances)
            for plan, place in zip(laid.plans, places, strict=True)
        ]
        return sets, {name: self._masses(laid, sets, name) for name in laid.names}

    def _masses(self, laid: _Laid, sets: Sequence[Sets], name: str) -> list[Masses]:
        _, text = self._texts[name]
        asked = [
            (one, text.line(nodes), tree)
            for one, nodes, tree in zip(sets, laid.maps, laid.trees, strict=True)
        ]
        return masses(text.found(), asked)

    def _deeper(
        self, laid: _Laid, sets: Sequence[Sets], found: Mapping[str, Sequence[Masses]]
    ) -> _Laid:
        """The places as the bridge wants them read again; the same ones where it does not."""
        plans, trees = list(laid.plans), list(laid.trees)
        for j, plan in enumerate(laid.plans):
            deeper = self._bridge.deeper(plan, sets[j], [its[j] for its in found.values()])
            if deeper is None:
                continue
            tree = replace(deeper.tree, trunk=trees[j].trunk)  # as it was cut
            if fits(tree, self._window.size):
                plans[j], trees[j] = deeper, tree
        same = all(new is old for new, old in zip(plans, laid.plans, strict=True))
        return laid if same else _laid(laid.names, plans, trees)

    def _combined(self, laid: Sequence[_Laid], found: Sequence[_Asked]) -> list[Offsets]:
        readings: dict[str, list[Reading]] = {}
        for one, (sets, by_name) in zip(laid, found, strict=True):
            for name, its in by_name.items():
                parts = zip(one.plans, sets, its, strict=True)
                readings[name] = [self._bridge.reading(*part) for part in parts]
        anti = readings.pop(ANTIEXPERT)
        weights = [self._weights[name] for name in readings]
        return [
            combined([self._bridge.offsets(expert, base) for expert in experts], weights)
            for *experts, base in zip(*readings.values(), anti, strict=True)
        ]

    def _survey(self, laid: _Laid, j: int, name: str) -> Survey:
        """The whole upstream vocabulary as one model sees it at place j."""
        _, text = self._texts[name]
        rows, behind, tree = text.found(), text.line(laid.maps[j]), laid.trees[j]
        nodes = np.array(self._bridge.surveyed(laid.plans[j]), np.int64)
        tokens, parents = (np.array(of, np.int64) for of in (tree.tokens, tree.parents))
        whole = Rows(rows.whole(behind[nodes + 1]), rows.chances(behind[parents + 1], tokens))
        return self._bridge.survey(laid.plans[j], whole)


def _laid(names: tuple[str, ...], plans: Sequence[Plan], trees: Sequence[Tree]) -> _Laid:
    tree, maps = merge(trees)
    return _Laid(names, tuple(plans), tuple(trees), tree, tuple(maps))
