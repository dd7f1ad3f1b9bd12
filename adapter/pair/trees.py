"""Trees by token path: several merged into one, and what of an old one a new one still has."""

from bisect import bisect_left
from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.bridge import Tree

Ints = NDArray[np.int64]


def merge(trees: Sequence[Tree]) -> tuple[Tree, list[Ints]]:
    """One tree with every path of all of them, and each one's nodes by their numbers in it.

    The trunk is the common beginning of all trunks, empty where windows were cut apart.
    ``maps[k][i + 1]`` is the number of node i of tree k; entry 0 is where its trunk ends.
    """
    trunk = trees[0].trunk
    for tree in trees[1:]:
        trunk = trunk[: common(trunk, tree.trunk)]
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> number
    maps = []
    for tree in trees:
        at = -1
        for token in tree.trunk[len(trunk) :]:
            at = nodes.setdefault((at, token), len(nodes))
        numbers = [at]
        for token, parent in zip(tree.tokens, tree.parents, strict=True):
            numbers.append(nodes.setdefault((numbers[parent + 1], token), len(nodes)))
        maps.append(np.array(numbers, np.int64))
    tokens, parents = tuple(t for _, t in nodes), tuple(p for p, _ in nodes)
    return Tree(trunk, tokens, parents), maps


def matched(old: Tree, new: Tree) -> Ints:
    """Where each token of the new tree, trunk first, stood in the old one; −1 for nowhere."""
    end, length = len(old.trunk) - 1, len(new.trunk)
    edges = {
        (parent + 1 + end, token): end + 1 + node
        for node, (parent, token) in enumerate(zip(old.parents, old.tokens, strict=True))
    }

    def follow(at: int | None, token: int) -> int | None:
        if at is None:
            return None
        if at < end:
            return at + 1 if old.trunk[at + 1] == token else None
        return edges.get((at, token))

    shared = common(old.trunk, new.trunk)
    at: int | None = shared - 1
    rest = list[int | None]()
    for token in new.trunk[shared:]:
        rest.append(at := follow(at, token))
    for token, parent in zip(new.tokens, new.parents, strict=True):
        place = length + parent
        rest.append(follow(place if place < shared else rest[place - shared], token))
    found = np.array([-1 if at is None else at for at in rest], np.int64)
    return np.concatenate([np.arange(shared), found])


def common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens both begin with; most often all of the shorter one."""
    count = min(len(left), len(right))
    if left[:count] == right[:count]:
        return count
    return bisect_left(range(count), True, key=lambda n: left[: n + 1] != right[: n + 1])
