"""Models read at many places of a text at once, for benches: by whole rows, or as a bridge asks."""

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from adapter.pair.loading import LocalModel
from adapter.pair.network import Network
from adapter.pair.rows import masses
from adapter.pair.trees import merge
from tokenizer_maps import FastBridge, IdentityBridge, Masses, Plan, Sets, Tree
from tokenizer_maps.steps import Rows, Whole

Ints = NDArray[np.int64]


class Reading:
    """What one model makes of the places of a text."""

    def __init__(self, network: Network, adapter: str | None) -> None:
        self._network, self._text = network, network.text(adapter)
        self._nodes: dict[Tree, Ints] = {}

    def read(self, trees: Sequence[Tree]) -> None:
        """All in one forward, as far as the last ones did not have the same beginnings."""
        trees = list(dict.fromkeys(trees))
        whole, nodes = merge(trees)
        self._network.evaluate(self._text, whole)
        self._nodes = dict(zip(trees, nodes, strict=True))

    def masses(self, tree: Tree, sets: Sets) -> Masses:
        """The sums that a bridge wants."""
        lines = self._lines(tree)
        return masses(self._text.found(), [(sets, lines, tree)])[0]

    def rows(self, tree: Tree, nodes: Sequence[int] = (-1,)) -> Rows:
        """Whole rows behind some nodes."""
        lines, found = self._lines(tree), self._text.found()
        tokens, parents = (np.array(of, np.int64) for of in (tree.tokens, tree.parents))
        whole = found.whole(lines[np.array(nodes) + 1])
        return Rows(whole, found.chances(lines[parents + 1], tokens))

    def _lines(self, tree: Tree) -> Ints:
        if tree not in self._nodes:  # a second pass
            self.read([*self._nodes, tree])
        return self._text.line(self._nodes[tree])


class Pair:
    """Expert and anti-expert, as ``rules`` asks them."""

    def __init__(self, expert: LocalModel, anti: LocalModel) -> None:
        modules = {id(one.network): one for one in (expert, anti)}
        networks = {key: Network(one.network, one.blank) for key, one in modules.items()}
        self._both = [Reading(networks[id(m.network)], m.adapter) for m in (expert, anti)]

    def read(self, trees: Sequence[Tree]) -> None:
        """With both."""
        for one in self._both:
            one.read(trees)

    def ask(self, tree: Tree, sets: Sets) -> list[Masses]:
        """The masses of both, expert first."""
        return [one.masses(tree, sets) for one in self._both]

    def whole(self, bridge: IdentityBridge | FastBridge, plan: Plan) -> Whole:
        """What they make of the whole vocabulary of the hosted model."""
        nodes = bridge.surveyed(plan)
        surveys = (bridge.survey(plan, one.rows(plan.tree, nodes)) for one in self._both)
        return bridge.whole(*surveys)
