"""Text: what a network holds of one growing text: a tree, a slot a token, rows at its end."""

from collections.abc import Iterable

import numpy as np
from numpy.typing import NDArray

from adapter.pair.pool import Pool
from adapter.pair.rows import Rows
from adapter.pair.trees import common, matched
from tokenizer_maps.bridge import Tree

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NOTHING = Tree((), (), ())


class Text:
    """A tree in a pool, perhaps with holes: slot −1 is a token still to be read.

    Tokens are numbered trunk first, then branches. Rows are kept behind the trunk's last token and
    behind each branch: ``lines[i]`` is the row behind token i, −1 where there is none. What comes
    back never depends on how the text got to its tree.
    """

    def __init__(self, pool: Pool, adapter: str | None = None) -> None:
        """``adapter``: the LoRA adapter that reads it, None for the network itself."""
        self.adapter = adapter
        self.used = 0  # the round that last wanted it
        self.closed = False
        self._pool = pool
        self.clear(new=True)

    def clear(self, *, new: bool = False) -> None:
        """Give all slots back; what is wanted later is read again."""
        if not new:
            self._pool.drop(self.slots[self.slots >= 0])
        self.tree = NOTHING
        self.slots: Ints = np.zeros(0, np.int64)
        self.lines: Ints = np.zeros(0, np.int64)
        self.positions: Ints = np.zeros(0, np.int64)
        self.rows: Rows | None = None
        self._kin: Flags = np.zeros((0, 0), np.bool_)

    def aim(self, tree: Tree) -> None:
        """Take a new tree: keep what it shares with the old one, give the rest back."""
        if tree == self.tree:
            return
        source = matched(self.tree, tree)
        slots, lines = (_moved(column, source) for column in (self.slots, self.lines))
        ends = max(0, len(tree.trunk) - 1)
        lines[:ends] = -1
        slots[ends:][lines[ends:] < 0] = -1  # its row is gone: read it again
        left = np.ones(len(self.slots), np.bool_)
        left[source[slots >= 0]] = False
        self._pool.drop(self.slots[left & (self.slots >= 0)])
        if self.rows is not None:
            found = np.flatnonzero(lines >= 0)
            self.rows = self.rows.some(lines[found]) if len(found) else None
            lines[found] = np.arange(len(found))
        self.tree, self.slots, self.lines = tree, slots, lines
        self._kin = _kin(tree.parents)
        depths = self._kin.sum(1, dtype=np.int64)
        length = len(tree.trunk)
        self.positions = np.concatenate([np.arange(length), length - 1 + depths])

    def share(self, others: Iterable["Text"]) -> None:
        """Take over, uncopied, what another text has read of this one's beginning."""
        have = self._read()
        wanted = self.tree.trunk[:-1]
        if have >= len(wanted):
            return
        best, most = self, have
        for other in others:
            if other.adapter == self.adapter and (count := other._begins(wanted)) > most:
                best, most = other, count
        if most > have:
            slots = best.slots[have:most]
            self._pool.share(slots)
            self.slots[have:most] = slots

    def missing(self) -> Ints:
        """The tokens still to be read."""
        return np.flatnonzero(self.slots < 0)

    def holds(self, tree: Tree) -> bool:
        """Whether all of the tree has been read."""
        return tree == self.tree and bool((self.slots >= 0).all())

    def seen(self, tokens: Ints) -> Flags:
        """[tokens, all up to the last of them]: which ones each may see: its path and itself."""
        length, width = len(self.tree.trunk), int(tokens[-1]) + 1
        seen = np.arange(min(width, length)) <= tokens[:, None]
        if width <= length:
            return seen
        beyond = np.zeros((len(tokens), width - length), np.bool_)
        nodes = tokens >= length
        beyond[nodes] = self._kin[tokens[nodes] - length, : width - length]
        return np.concatenate([seen, beyond], axis=1)

    def ends(self, tokens: Ints) -> Ints:
        """Those of the tokens behind which a row is wanted."""
        return tokens[tokens >= len(self.tree.trunk) - 1]

    def add(self, tokens: Ints, rows: Rows) -> None:
        """The rows behind tokens that have just been read."""
        known = len(self.rows.norms) if self.rows is not None else 0
        self.rows = rows if self.rows is None else self.rows.and_(rows)
        self.lines[tokens] = np.arange(known, known + len(tokens))

    def line(self, nodes: Ints) -> Ints:
        """The rows behind branches, −1 for the trunk's end."""
        return self.lines[nodes + len(self.tree.trunk)]

    def found(self) -> Rows:
        """The rows; RuntimeError before a tree was read."""
        if self.rows is None:
            raise RuntimeError("asked for rows before a tree was read")
        return self.rows

    def ids(self, tokens: Ints) -> list[int]:
        """The tokens by their numbers."""
        trunk, length = self.tree.trunk, len(self.tree.trunk)
        return [trunk[i] if i < length else self.tree.tokens[i - length] for i in tokens.tolist()]

    def _read(self) -> int:
        """How much of the trunk has been read without a hole."""
        holes = self.slots[: len(self.tree.trunk)] < 0
        return int(holes.argmax()) if holes.any() else len(holes)

    def _begins(self, wanted: tuple[int, ...]) -> int:
        if not self.tree.trunk or self.tree.trunk[:1] != wanted[:1]:
            return 0
        return min(common(self.tree.trunk, wanted), self._read())


def _moved(column: Ints, source: Ints) -> Ints:
    """A column's entries at their new places, −1 where there was none."""
    return np.append(column, -1)[source]


def _kin(parents: tuple[int, ...]) -> Flags:
    """[branches, branches]: which ones lie on the path to each, itself included."""
    kin = np.eye(len(parents), dtype=np.bool_)
    for node, parent in enumerate(parents):
        if parent >= 0:
            kin[node] |= kin[parent]
    return kin
