"""Sums: collects what a bridge asks of the pair, and turns the answer into masses."""

from collections.abc import Sequence
from typing import TypedDict

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.steps import Floats, Ints, Masses, Plan, Role, Sets

Ids = NDArray[np.integer]


class Columns(TypedDict):
    """The arrays of a Sets."""

    nodes: Ints
    ptr: Ints
    ids: Ints
    sums: Ints
    owners: Ints
    roles: Ints


class Sums:
    """Sums being collected, and what they are used for."""

    def __init__(self) -> None:
        self._count = 0
        self._sums: list[tuple[Ids, Ids, Ids]] = []  # nodes, lengths, ids
        self._uses: list[tuple[Ids, Ids, Ids]] = []  # sums, owners, roles
        self._single: list[tuple[int, int, int]] = []  # the same, one by one

    def add(self, node: int, ids: Sequence[int] | Ids) -> int:
        """One sum at a node; its number."""
        array = np.asarray(ids, np.int64)
        self._sums.append((np.array([node]), np.array([len(array)]), array))
        self._count += 1
        return self._count - 1

    def use(self, number: int, owner: int, role: Role) -> None:
        """What a sum is to a candidate."""
        self._single.append((number, owner, role))

    def part(self, node: int, ids: Sequence[int] | Ids, owner: int) -> None:
        """One sum that is part of one candidate."""
        self.use(self.add(node, ids), owner, Role.PART)

    def parts(self, node: int, lengths: Ids, ids: Ids, owners: Ids) -> None:
        """Many sums at a node, each part of one candidate; their ids one after the other."""
        if len(lengths):
            numbers = np.arange(self._count, self._count + len(lengths))
            self._sums.append((np.full(len(lengths), node), lengths, ids))
            self._uses.append((numbers, owners, np.zeros(len(lengths), np.int64)))
            self._count += len(lengths)

    def columns(self) -> Columns:
        """All of it as arrays."""
        nodes, lengths, ids = _joined(self._sums)
        single = np.array(self._single, np.int64).reshape(-1, 3)
        sums, owners, roles = _joined([*self._uses, (single[:, 0], single[:, 1], single[:, 2])])
        ptr = np.concatenate([np.zeros(1, np.int64), np.cumsum(lengths)])
        return Columns(nodes=nodes, ptr=ptr, ids=ids, sums=sums, owners=owners, roles=roles)


def weights(plan: Plan, masses: Masses) -> Floats:
    """ln of the mass of the path to each node, the trunk's end first; the end head's is 0.

    A model that finds the text itself impossible has no other scale: what lies behind the end
    head stands alone.
    """
    end = plan.heads[0].node + 1
    steps = masses.nodes.tolist()
    paths = [0.0]
    behind = [end == 0]
    for node, parent in enumerate(plan.tree.parents):
        at_end = node + 1 == end
        behind.append(at_end or behind[parent + 1])
        # From the end head on, the scale is its own: no difference of large numbers.
        fresh = behind[-1] and not at_end
        start = 0.0 if fresh and parent + 1 == end else paths[parent + 1]
        paths.append(start + steps[node])
    found, inside = np.array(paths), np.array(behind)
    own = found[end]
    found[~inside] = found[~inside] - own if np.isfinite(own) else -np.inf
    found[end] = 0.0
    return found


def totals(sets: Sets, values: Floats) -> tuple[Floats, float]:
    """Σ exp(value of the sum) by role and owner, the context last, and the ln of their unit.

    The unit keeps heads that are far likelier than the end head within the range of floats.
    """
    unit = max(0.0, float(values.max(initial=0.0)))
    width = len(sets.end) + 1
    cells = sets.roles * width + sets.owners
    terms = np.exp(values[sets.sums] - unit)
    found = np.bincount(cells, terms, minlength=len(Role) * width)
    return np.asarray(found.reshape(len(Role), width), np.float64), unit


def _joined(chunks: Sequence[tuple[Ids, Ids, Ids]]) -> tuple[Ints, Ints, Ints]:
    empty = np.zeros(0, np.int64)
    first, second, third = zip((empty, empty, empty), *chunks, strict=True)
    return (
        np.concatenate(first, dtype=np.int64),
        np.concatenate(second, dtype=np.int64),
        np.concatenate(third, dtype=np.int64),
    )
