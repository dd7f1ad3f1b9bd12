"""Language models that train in a second: n-grams by interpolated absolute discounting."""

from collections.abc import Iterator, Sequence
from functools import lru_cache
from typing import NamedTuple

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps import Masses, Sets, Tree, Vocabulary

MEMORY = 3
DISCOUNT = 0.75

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


class Table(NamedTuple):
    """The grams of one length, sorted: ``context`` · size + token, context = a shorter gram."""

    grams: Ints
    counts: Ints


class Ngrams:
    """P(next token | the last ``memory``), as the bridge's oracles take it: by the path."""

    def __init__(self, vocabulary: Vocabulary, ids: Sequence[int], memory: int = MEMORY) -> None:
        self.size = len(vocabulary.tokens)
        self.memory = memory
        self.tables = list(_tables(np.array(ids, np.int64), self.size, memory))
        text = np.array([vocabulary.spells(i) for i in range(self.size)])
        self._base = self._interpolate(text / text.sum(), self.tables[0], 0)
        self._row = lru_cache(64)(self._compute)

    def __call__(self, path: tuple[int, ...]) -> Floats:
        return self._row(path[-self.memory :])

    def _compute(self, last: tuple[int, ...]) -> Floats:
        row = self._base
        for length in range(1, len(last) + 1):
            gram = self._find(last[-length:])
            if gram is None:
                break
            row = self._interpolate(row, self.tables[length], gram)
        return row

    def _find(self, tokens: tuple[int, ...]) -> int | None:
        """The index of a gram in the table of its length."""
        found = 0
        for table, token in zip(self.tables, tokens, strict=False):
            key = found * self.size + token
            found = int(np.searchsorted(table.grams, key))
            if found == len(table.grams) or table.grams[found] != key:
                return None
        return found

    def _interpolate(self, shorter: Floats, table: Table, context: int) -> Floats:
        ends = np.searchsorted(table.grams, [context * self.size, (context + 1) * self.size])
        low, high = ends.tolist()
        if low == high:
            return shorter
        counts = table.counts[low:high]
        total = counts.sum()
        row = shorter * (DISCOUNT * len(counts) / total)
        row[table.grams[low:high] - context * self.size] += (counts - DISCOUNT) / total
        return row


class NgramPair:
    """An expert and an anti-expert that answer what a bridge wants to know."""

    def __init__(self, expert: Ngrams, antiexpert: Ngrams) -> None:
        self.models = expert, antiexpert

    def ask(self, tree: Tree, sets: Sets) -> list[Masses]:
        """The masses of both, expert first."""
        paths = [tree.trunk]
        for parent, token in zip(tree.parents, tree.tokens, strict=True):
            paths.append((*paths[parent + 1], token))
        return [_masses(model, paths, tree, sets) for model in self.models]


def _masses(model: Ngrams, paths: list[tuple[int, ...]], tree: Tree, sets: Sets) -> Masses:
    """Log sums of the probabilities of the sets, each after its node."""
    branches = zip(tree.parents, tree.tokens, strict=True)
    nodes = np.array([model(paths[parent + 1])[token] for parent, token in branches])
    sums = np.zeros(len(sets.nodes))
    for j in np.argsort(sets.nodes, kind="stable").tolist():
        chances = model(paths[int(sets.nodes[j]) + 1])
        sums[j] = chances[sets.ids[sets.ptr[j] : sets.ptr[j + 1]]].sum()
    with np.errstate(divide="ignore"):
        return Masses(np.log(sums), np.log(nodes))


def _tables(ids: Ints, size: int, memory: int) -> Iterator[Table]:
    context = np.zeros(len(ids), np.int64)
    for _ in range(memory + 1):
        grams, which, counts = np.unique(
            context * size + ids, return_inverse=True, return_counts=True
        )
        yield Table(grams, counts)
        context, ids = which[:-1].astype(np.int64), ids[1:]
