"""Batched, shared, branched, rolled-back and evicted readings equal fresh single forwards."""

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import BloomConfig, BloomForCausalLM

from adapter.errors import PairError
from adapter.pair.attention import grouped
from adapter.pair.network import Network, NoRoom
from tests.adapter.pair.networks import BLANK, KINDS, LIVE, counted, error, network, plain
from tokenizer_maps.bridge import Tree

SINGLE, HALF = 1e-4, 2e-2

TREE = Tree(trunk=(1, 5, 9), tokens=(4, 7, 8, 6, 2), parents=(-1, 0, 0, -1, 3))
LONG = Tree((1, 5, 9, 2, 8, 8, 3, 11), (4, 7, 8, 4, 2, 6, 1), (-1, 0, 1, 0, 3, -1, 2))


@pytest.fixture(scope="module", params=KINDS)
def module(request):
    return network(request.param)


@pytest.fixture
def model(module, request):
    """The same weights once more, read by the engine's network."""
    return Network(network(request.node.callspec.params["module"]), BLANK)


def check(module, model, text, tree, limit=SINGLE):
    model.evaluate(text, tree)
    assert error(module, text, tree) < limit


def check_all(module, model, trees, limit=SINGLE):
    """Several texts, by forwards over all that each still lacks."""
    busy = set(trees)
    while parts := [p for text, tree in trees.items() if (p := model.prepare(text, tree, busy))]:
        model.forward(parts)
    for text, tree in trees.items():
        assert error(module, text, tree) < limit


def test_a_tree_equals_its_paths_one_by_one(module, model):
    text = model.text()
    check(module, model, text, TREE)
    check(module, model, text, Tree(TREE.trunk, (), ()))


def test_a_tree_may_have_no_trunk(module, model):
    text = model.text()
    for _ in range(2):
        model.evaluate(text, Tree((), (3, 4, 5, 4), (-1, 0, -1, 2)))
        rows = text.found().whole(text.line(np.arange(4)))[:, LIVE]
        for row, ids in zip(rows, [(3,), (3, 4), (5,), (5, 4)], strict=True):
            assert np.abs(row - plain(module, ids)[LIVE]).max() < SINGLE
        check(module, model, text, Tree((5, 4), (1,), (-1,)))


def test_append_and_roll_back_equal_fresh(module, model):
    text = model.text()
    for trunk in [(1, 5), (1, 5, 9, 4), (1, 5, 9, 4, 4, 4), (1, 5, 9), (1, 5, 2), (7,), (7, 7)]:
        check(module, model, text, Tree(trunk, (3, 6), (-1, 0)))


def test_a_larger_tree_costs_its_new_branches_alone(module, model):
    text = model.text()
    check(module, model, text, Tree(LONG.trunk, LONG.tokens[:3], LONG.parents[:3]))
    with counted(model) as lengths:
        model.evaluate(text, LONG)
    assert lengths == [4]
    check(module, model, text, LONG)
    check(module, model, text, Tree(LONG.trunk, (9,), (-1,)))


@pytest.mark.parametrize("branch", [(4,), (4, 7), (4, 7, 8), (4, 4, 2), (6,), (4, 9)])
@pytest.mark.parametrize("more", [(), (3,), (3, 3, 2)])
def test_a_trunk_along_a_branch_keeps_what_was_read(module, model, branch, more):
    text = model.text()
    model.evaluate(text, LONG)
    trunk = LONG.trunk + branch + more
    known = len(branch) if branch != (4, 9) else 1
    tree = Tree(trunk, (5, 5, 10), (-1, 0, -1))
    with counted(model) as lengths:
        model.evaluate(text, tree)
    assert lengths == [len(branch) - known + len(more) + 3]
    check(module, model, text, tree)
    check(module, model, text, LONG)  # and back again


def test_branches_are_kept_along_with_the_trunk(module, model):
    text = model.text()
    model.evaluate(text, LONG)
    with counted(model) as lengths:
        model.evaluate(text, Tree((*LONG.trunk, 4), (7, 8, 9, 4), (-1, 0, 1, -1)))
    assert lengths == [1]  # the 9 alone is new
    check(module, model, text, Tree(LONG.trunk[:6], (3, 11, 4, 2), (-1, 0, 1, -1)))


def test_nothing_new_costs_nothing(module, model):
    text = model.text()
    check(module, model, text, LONG)
    along = Tree((*LONG.trunk, 4, 7), (), ())
    with counted(model) as lengths:
        model.evaluate(text, LONG)
        model.evaluate(text, along)
    assert lengths == []
    check(module, model, text, along)


def test_texts_in_one_forward_do_not_see_each_other(module, model):
    """A prompt, a tree, a draft behind a long text and one more token, together."""
    started = model.text(), model.text()
    model.evaluate(started[0], Tree(tuple(i % 40 for i in range(50)), (), ()))
    model.evaluate(started[1], LONG)
    draft = Tree(tuple(i % 40 for i in range(50)), (9, 9, 8, 7, 3), (-1, 0, 1, 2, 0))
    trees = {
        model.text(): Tree(tuple(7 * i % 37 + 2 for i in range(30)), (), ()),
        started[0]: draft,
        model.text(): TREE,
        started[1]: Tree((*LONG.trunk, 4), (2,), (-1,)),
    }
    with counted(model) as lengths:
        check_all(module, model, trees)
    assert lengths[0] == 30 + 5 + 6 + 1  # two of the third's are shared; the last's 2 alone is new


def test_texts_share_what_they_have_in_common(module, model):
    first, second = model.text(), model.text()
    check(module, model, first, LONG)
    before = model.pool.used
    with counted(model) as lengths:
        model.evaluate(second, Tree((*LONG.trunk, 7), (2,), (-1,)))
    assert lengths == [2]
    assert model.pool.used == before + 2
    check(module, model, second, Tree((*LONG.trunk, 7), (2,), (-1,)))
    check(
        module, model, first, Tree((*LONG.trunk, 6, 6), (2,), (-1,))
    )  # neither disturbs the other
    check(module, model, second, Tree((*LONG.trunk, 7, 1), (2, 3), (-1, 0)))
    model.forget(first)
    check(module, model, second, Tree((*LONG.trunk, 9), (), ()))
    check(module, model, model.text(), LONG)


def test_equal_prompts_of_one_forward_are_read_once(module, model):
    prompt = tuple(i % 40 for i in range(30))
    trees = {model.text(): Tree(prompt, (), ()) for _ in range(3)}
    trees[model.text()] = Tree((*prompt[:20], 7, 8, 9), (1,), (-1,))
    with counted(model) as lengths:
        check_all(module, model, trees)
    assert lengths[0] == 30 + 1 + 1 + 4


def test_an_evicted_text_is_read_again(module, model):
    model.pool.most = 40
    texts = [model.text() for _ in range(3)]
    trees = [Tree(tuple((7 * i + n) % 40 for i in range(15)), (3, 4), (-1, 0)) for n in range(3)]
    for used, (text, tree) in enumerate(zip(texts, trees, strict=True)):
        text.used = used
        check(module, model, text, tree)
    assert [text in model.texts for text in texts] == [False, True, True]  # the oldest went
    for _ in range(2):
        for text, tree in zip(texts, trees, strict=True):
            check(module, model, text, tree)
    assert model.pool.used <= 40


def test_a_text_that_is_too_long_has_no_room(module, model):
    model.pool.most = 10
    text = model.text()
    with pytest.raises(NoRoom):
        model.evaluate(text, LONG)
    check(module, model, text, TREE)


def test_all_slots_come_back(module, model):
    texts = [model.text() for _ in range(3)]
    for text in texts:
        model.evaluate(text, LONG)
        model.evaluate(text, Tree((*LONG.trunk, 4, 7), (2, 2), (-1, 0)))
    for text in texts:
        model.forget(text)
    assert model.pool.used == 0


def test_half_precision_is_near_single(request, module):
    kind = request.node.callspec.params["module"]
    half, model = network(kind, torch.bfloat16), Network(network(kind, torch.bfloat16), BLANK)
    text, other = model.text(), model.text()
    for tree in (TREE, LONG, Tree((*LONG.trunk, 4, 7, 2), (3, 6), (-1, 0)), TREE):
        check(half, model, text, tree, HALF)
    check_all(half, model, {text: LONG, other: Tree((*LONG.trunk, 5), (1, 2), (-1, 0))}, HALF)


def test_rounding_of_large_logits_is_no_other_way_to_read():
    """As Qwen2.5-Coder has them: somewhere in the vocabulary bfloat16 is off by more than a nat."""
    large = network("qwen2", torch.bfloat16)
    with torch.no_grad():
        large.lm_head.weight.mul_(400.0)
    Network(large, BLANK)


def test_a_long_prompt_goes_in_chunks(module, model):
    model._chunk = 7
    prompt = tuple(i % 40 for i in range(60))
    first, second = model.text(), model.text()
    check(module, model, first, Tree(prompt, (3, 6), (-1, -1)))
    third = Tree(tuple(i % 39 for i in range(50)), (), ())
    with counted(model) as lengths:
        check_all(
            module, model, {second: Tree(prompt, (5,) * 9, (-1, *range(8))), model.text(): third}
        )
    assert sum(lengths[:8]) < 10 + 50 + 10


TOKENS = st.integers(0, 4)
TRUNKS = st.lists(TOKENS, min_size=1, max_size=12).map(tuple)
TREES = st.tuples(TRUNKS, st.lists(TOKENS, max_size=4)).map(
    lambda pair: Tree(
        pair[0],
        tuple(token + 5 * i for i, token in enumerate(pair[1])),
        tuple(i - 1 if i % 2 else -1 for i in range(len(pair[1]))),
    )
)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.dictionaries(st.integers(0, 2), TREES, min_size=1, max_size=2), max_size=4))
def test_any_history_equals_fresh(module, request, history):
    """Few slots: texts push each other out."""
    model = Network(network(request.node.callspec.params["module"]), BLANK)
    model.pool.most = 36
    texts = [model.text() for _ in range(3)]
    for now, step in enumerate(history):
        for i in step:
            texts[i].used = now
        check_all(module, model, {texts[i]: tree for i, tree in step.items()})


def test_rows_need_a_tree(model):
    with pytest.raises(RuntimeError, match="before a tree"):
        model.text().found()


def test_attention_that_goes_other_ways_is_refused():
    config = BloomConfig(vocab_size=48, hidden_size=32, n_layer=2, n_head=2)
    with pytest.raises(PairError, match="bloom"):
        Network(BloomForCausalLM(config).eval(), BLANK)


def test_texts_of_like_size_are_padded_together():
    assert grouped([(1, 9), (1, 10), (1, 12)]) == [[0, 1, 2]]
    assert grouped([(1, 100), (256, 4000), (2, 90), (256, 3900)]) == [[0, 2], [3, 1]]
    sizes = [(int(q), int(k)) for q, k in np.random.default_rng(0).integers(1, 500, (40, 2))]
    groups = grouped(sizes)
    assert sorted(i for group in groups for i in group) == list(range(40))
    for group in groups:
        some = [sizes[i] for i in group]
        padded = len(group) * max(q for q, _ in some) * max(k for _, k in some)
        assert padded <= 2 * sum(q * k for q, k in some) + 4096


def test_these_networks_tell_contexts_apart(module):
    """The canary of all tests above: a token more, less or elsewhere is no rounding error."""
    ids = tuple(range(20, 28))
    wrong = [
        (*ids[:4], 3, *ids[5:]),
        (*ids[:5], ids[6], ids[5], ids[7]),
        ids[1:],
        ids[:5] + ids[6:],
    ]
    for other in wrong:
        assert np.abs(plain(module, ids)[LIVE] - plain(module, other)[LIVE]).max() > 50 * SINGLE
