"""The pair's context window: what to do when a text is longer than the pair can read."""

from dataclasses import replace

from tokenizer_maps.bridge import Tree

_BLOCKS = 4
"""A window slides by a quarter of itself, so that the KV cache survives most steps."""


def fits(tree: Tree, window: int) -> bool:
    """Whether trunk and branches have room in a window of so many tokens."""
    return len(tree.trunk) + len(tree.tokens) <= window


def cut(tree: Tree, window: int, head: int) -> Tree:
    """The tree with its trunk cut to the first `head` and the last tokens that have room.

    The cut moves in blocks of a quarter window: between two moves the trunk only grows.
    """
    if fits(tree, window):
        return tree
    block = max(1, window // _BLOCKS)
    over = len(tree.trunk) + len(tree.tokens) - window
    dropped = -(-over // block) * block
    kept = tree.trunk[:head] + tree.trunk[head + dropped :]
    return replace(tree, trunk=kept or tree.trunk[-1:])
