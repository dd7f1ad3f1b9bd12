"""Trees by token path: merging several, and matching a new one against an old one."""

from hypothesis import given
from hypothesis import strategies as st

from adapter.pair.trees import common, matched, merge
from tokenizer_maps.bridge import Tree

TOKENS = st.integers(0, 2)


@st.composite
def trees(draw):
    """Trees without equal siblings; few tokens, so that paths meet."""
    trunk = draw(st.lists(TOKENS, max_size=5))
    nodes = {}
    for token, at in draw(st.lists(st.tuples(TOKENS, st.integers(-1, 8)), max_size=6)):
        nodes.setdefault((min(at, len(nodes) - 1), token), len(nodes))
    return Tree(tuple(trunk), tuple(t for _, t in nodes), tuple(p for p, _ in nodes))


def paths(tree):
    """The text up to every token, trunk first; the slow way to say where it is."""
    branches = []
    for token, parent in zip(tree.tokens, tree.parents, strict=True):
        branches.append((*(branches[parent] if parent >= 0 else tree.trunk), token))
    return [tree.trunk[: i + 1] for i in range(len(tree.trunk))] + branches


@given(st.lists(trees().filter(lambda tree: tree.trunk), min_size=1, max_size=4))
def test_a_merged_tree_has_every_path_once(some):
    merged, maps = merge(some)
    every = paths(merged)
    assert len(set(every)) == len(every)
    for tree, numbers in zip(some, maps, strict=True):
        own = [tree.trunk, *paths(tree)[len(tree.trunk) :]]
        assert [every[len(merged.trunk) + number] for number in numbers.tolist()] == own
    wanted = {path for tree in some for path in paths(tree)}
    assert set(every) == wanted
    assert all(parent < i for i, parent in enumerate(merged.parents))
    assert all(tree.trunk[: len(merged.trunk)] == merged.trunk for tree in some)


@given(trees(), trees())
def test_a_match_is_the_place_of_the_same_path(old, new):
    places = {path: i for i, path in enumerate(paths(old))}
    assert matched(old, new).tolist() == [places.get(path, -1) for path in paths(new)]


def test_a_draft_is_a_trunk_and_a_chain():
    merged, maps = merge(
        [Tree((1, 2), (9,), (-1,)), Tree((1, 2, 5), (), ()), Tree((1, 2, 5, 6), (), ())]
    )
    assert merged == Tree((1, 2), (9, 5, 6), (-1, -1, 1))
    assert [m.tolist() for m in maps] == [[-1, 0], [1], [2]]


@given(st.lists(TOKENS).map(tuple), st.lists(TOKENS).map(tuple))
def test_the_common_beginning(left, right):
    count = common(left, right)
    assert left[:count] == right[:count]
    assert count == min(len(left), len(right)) or left[count] != right[count]
