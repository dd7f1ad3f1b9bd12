"""Alone: one model of a pair read by itself, as if there were no other."""

from collections.abc import Callable, Sequence
from typing import TypeVar
from weakref import finalize

import numpy as np
from numpy.typing import NDArray

from adapter.pair.engine import Engine, Steps
from adapter.pair.network import Network
from adapter.pair.rows import Rows
from adapter.pair.text import Text
from tokenizer_maps.bridge import Tree

Floats = NDArray[np.float64]
Ids = tuple[int, ...]
T = TypeVar("T")

_ROWS = 64
"""Places that are read at once; the model's whole vocabulary is held for each of them."""


class Alone:
    """Reads texts with one model on the pair's one worker; what they begin with is read once."""

    def __init__(self, engine: Engine, network: Network, text: Text) -> None:
        self._engine = engine
        self._network = network
        self._text = text
        self._release = finalize(self, engine.release, ((network, text),))
        self._release.atexit = False

    async def chances(self, head: Ids, paths: Sequence[Ids]) -> list[Floats]:
        """ln p of each token of each path behind a head, which is never empty."""
        if sum(map(len, paths)) <= _ROWS:
            return await self._along(head, paths)
        found = []
        for path in paths:
            pieces = range(0, len(path), _ROWS)
            its = [(head + path[:at], path[at : at + _ROWS]) for at in pieces]
            parts = [(await self._along(behind, [piece]))[0] for behind, piece in its]
            found.append(np.concatenate(parts) if parts else np.zeros(0))
        return found

    async def next(self, ids: Ids) -> Floats:
        """ln p of every token behind a text."""
        line = np.array([-1])
        row = await self._read(Tree(ids, (), ()), lambda r: r.whole(self._text.line(line)))
        return np.asarray(row[0], np.float64)

    def close(self) -> None:
        """Free what was read, as soon as the round that runs is over."""
        self._release()
        self._engine.wake()

    async def _along(self, head: Ids, paths: Sequence[Ids]) -> list[Floats]:
        """All paths in one tree: what they share is read once, and their last tokens not at all."""
        nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> number
        behind: list[int] = []
        for path in paths:
            at = -1
            for token in path[:-1]:
                behind.append(at)
                at = nodes.setdefault((at, token), len(nodes))
            behind += [at] if path else []
        tree = Tree(head, tuple(token for _, token in nodes), tuple(parent for parent, _ in nodes))
        ids = np.array([token for path in paths for token in path], np.int64)
        lines = np.array(behind, np.int64)
        found = await self._read(tree, lambda rows: rows.chances(self._text.line(lines), ids))
        return np.split(found, np.cumsum([len(path) for path in paths])[:-1])

    async def _read(self, tree: Tree, ask: Callable[[Rows], T]) -> T:
        def steps() -> Steps[T]:
            yield {(self._network, self._text): tree}
            return ask(self._text.found())

        return await self._engine.run(steps())
