"""Cached, branched and rolled-back forwards equal fresh single ones."""

import copy
from contextlib import contextmanager
from weakref import WeakSet

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from transformers import (
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from adapter.pair.loading import LocalModel
from adapter.pair.scoring import Scorer, tree_mask
from adapter.pair.window import cut, fits
from tokenizer_maps.bridge import Sets, Tree

ROWS = 48
BLANK = 3  # the last rows of the output layer name no token


def local(network):
    blank = torch.arange(ROWS) >= ROWS - BLANK
    return LocalModel("tiny", network.eval(), None, frozenset({0}), blank, 128)


SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}


def network(kind):
    torch.manual_seed(5)
    if kind == "gpt2":  # absolute positions: a wrong position id shows
        return GPT2LMHeadModel(
            GPT2Config(vocab_size=ROWS, n_embd=32, n_layer=2, n_head=2, n_positions=128)
        )
    if kind == "gemma3":  # layers of two kinds, one of which forgets
        return Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16, **SLIDING))
    if kind == "mistral":  # all layers forget
        return MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6))
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZES))
    return LlamaForCausalLM(LlamaConfig(**SIZES))


@pytest.fixture(scope="module", params=["llama", "qwen2", "gpt2", "gemma3", "mistral"])
def model(request):
    return local(network(request.param))


def plain(model, ids):
    """The slow twin: one fresh forward, the row behind the last id."""
    with torch.inference_mode():
        logits = model.network(torch.tensor([ids])).logits[0, -1].double()
    return torch.log_softmax(logits.masked_fill(model.blank, -torch.inf), -1).numpy()


def sums(nodes, ptr, ids):
    """Sets of which only the pair's part matters."""
    nothing = np.zeros(0, bool)
    arrays = (np.asarray(a, dtype=np.int64) for a in (nodes, ptr, ids, [], [], []))
    return Sets(*arrays, end=nothing, multi=nothing, capped=nothing)


def every_row(scorer, tree):
    """All log-probabilities behind the trunk and behind each branch token."""
    ids = np.arange(ROWS)
    count = 1 + len(tree.tokens)
    nodes = np.repeat(np.arange(-1, count - 1), ROWS)
    sets = sums(nodes, np.arange(count * ROWS + 1), np.tile(ids, count))
    return scorer.masses(sets).sets.reshape(count, ROWS)


def path(tree, node):
    tokens = []
    while node >= 0:
        tokens.append(tree.tokens[node])
        node = tree.parents[node]
    return tree.trunk + tuple(reversed(tokens))


def check(model, scorer, tree):
    scorer.evaluate(tree)
    rows = every_row(scorer, tree)
    for node in range(-1, len(tree.tokens)):
        expected = plain(model, path(tree, node))
        live = ~model.blank.numpy()
        assert np.abs(rows[node + 1][live] - expected[live]).max() < 1e-4
        assert np.isneginf(rows[node + 1][~live]).all()


@contextmanager
def counted(model):
    """The numbers of tokens of each forward."""
    lengths = []

    def note(module, args, kwargs):
        lengths.append(kwargs["input_ids"].shape[1])

    handle = model.network.register_forward_pre_hook(note, with_kwargs=True)
    yield lengths
    handle.remove()


TREE = Tree(trunk=(1, 5, 9), tokens=(4, 7, 8, 4, 2), parents=(-1, 0, 0, -1, 3))


def test_a_tree_equals_its_paths_one_by_one(model):
    check(model, Scorer(model), TREE)


def test_the_same_trunk_again_equals_the_first_time(model):
    scorer = Scorer(model)
    check(model, scorer, TREE)
    check(model, scorer, TREE)
    check(model, scorer, Tree(TREE.trunk, (), ()))


def test_append_and_roll_back_equal_fresh(model):
    scorer = Scorer(model)
    for trunk in [(1, 5), (1, 5, 9, 4), (1, 5, 9, 4, 4, 4), (1, 5, 2), (7,), (7, 7)]:
        check(model, scorer, Tree(trunk, (3, 6), (-1, 0)))


LONG = Tree((1, 5, 9, 2, 8, 8, 3, 11), (4, 7, 8, 4, 2, 6, 1), (-1, 0, 1, 0, 3, -1, 2))


def test_a_larger_tree_costs_its_new_branches_alone(model):
    scorer = Scorer(model)
    small = Tree(LONG.trunk, LONG.tokens[:3], LONG.parents[:3])
    check(model, scorer, small)
    with counted(model) as lengths:
        scorer.evaluate(LONG)
    assert lengths == [4]
    check(model, scorer, LONG)
    check(model, scorer, Tree(LONG.trunk, (9,), (-1,)))


@pytest.mark.parametrize("branch", [(4,), (4, 7), (4, 7, 8), (4, 4, 2), (6,), (4, 9)])
def test_a_trunk_along_a_branch_keeps_what_was_read(model, branch):
    known = len(branch) if branch != (4, 9) else 1
    for more in [(), (3,), (3, 3, 2)]:
        scorer = Scorer(model)
        scorer.evaluate(LONG)
        trunk = LONG.trunk + branch + more
        tree = Tree(trunk, (5, 5, 7), (-1, 0, -1))
        with counted(model) as lengths:
            scorer.evaluate(tree)
        assert lengths == [len(branch) - known + len(more) + 3]
        check(model, scorer, tree)
        check(model, scorer, LONG)  # and back again


def test_nothing_new_costs_nothing(model):
    scorer = Scorer(model)
    check(model, scorer, LONG)
    with counted(model) as lengths:
        along = Tree((*LONG.trunk, 4, 7), (), ())
        scorer.evaluate(LONG)
        scorer.evaluate(along)
    assert lengths == []
    check(model, scorer, along)


def test_readings_of_one_prompt_share_it(model):
    siblings = WeakSet()
    first, second = Scorer(model, siblings), Scorer(model, siblings)
    check(model, first, LONG)
    with counted(model) as lengths:
        second.evaluate(Tree((*LONG.trunk, 7), (2,), (-1,)))
    assert lengths == [2]
    check(model, second, Tree((*LONG.trunk, 7), (2,), (-1,)))
    check(model, first, Tree((*LONG.trunk, 6, 6), (2,), (-1,)))  # neither disturbs the other
    check(model, second, Tree((*LONG.trunk, 7, 1), (2, 3), (-1, 0)))
    del first
    check(model, Scorer(model, siblings), LONG)


def test_half_precision_is_near_single(model):
    half = local(copy.deepcopy(model.network).to(torch.bfloat16))
    scorer = Scorer(half)
    for tree in (TREE, LONG, Tree((*LONG.trunk, 4, 7, 2), (3, 6), (-1, 0))):
        scorer.evaluate(tree)
        rows = every_row(scorer, tree)
        live = ~half.blank.numpy()
        for node in range(-1, len(tree.tokens)):
            expected = plain(half, path(tree, node))
            assert np.abs(rows[node + 1][live] - expected[live]).max() < 2e-2


def test_a_long_prefill_goes_in_chunks(model, monkeypatch):
    monkeypatch.setattr("adapter.pair.scoring._CHUNK", 7)
    scorer = Scorer(model)
    check(model, scorer, Tree(tuple(i % 40 for i in range(60)), (3, 6), (-1, -1)))


trunks = st.lists(st.integers(0, 4), min_size=1, max_size=12).map(tuple)


@settings(max_examples=25, deadline=None)
@given(st.lists(st.tuples(trunks, st.lists(st.integers(0, 44), max_size=4)), max_size=5))
def test_any_history_equals_fresh(model, history):
    scorer = Scorer(model)
    for trunk, tokens in history:
        parents = tuple(i - 1 if i % 2 else -1 for i in range(len(tokens)))
        check(model, scorer, Tree(trunk, tuple(tokens), parents))


def test_masses_are_the_sums_over_sets_and_the_branch_probabilities(model):
    scorer = Scorer(model)
    scorer.evaluate(TREE)
    sets = sums([-1, 2, 0], [0, 3, 3, 5], [1, 2, 3, 10, 11])
    masses = scorer.masses(sets)
    ends = [plain(model, path(TREE, node)) for node in (-1, 2, 0)]
    assert masses.sets[0] == pytest.approx(np.logaddexp.reduce(ends[0][[1, 2, 3]]), abs=1e-4)
    assert masses.sets[1] == -np.inf
    assert masses.sets[2] == pytest.approx(np.logaddexp.reduce(ends[2][[10, 11]]), abs=1e-4)
    for i, token in enumerate(TREE.tokens):
        expected = plain(model, path(TREE, TREE.parents[i]))[token]
        assert masses.nodes[i] == pytest.approx(expected, abs=1e-4)


def test_masses_need_a_tree(model):
    with pytest.raises(RuntimeError, match="before a tree"):
        Scorer(model).masses(sums([], [0], []))


def test_the_mask_shows_ancestors_only():
    seen, positions = tree_mask(Tree((1, 2), (3, 4, 5), (-1, 0, -1)), past=2)
    assert seen.int().tolist() == [
        [1, 1, 1, 0, 0, 0, 0],
        [1, 1, 1, 1, 0, 0, 0],
        [1, 1, 1, 1, 1, 0, 0],
        [1, 1, 1, 1, 1, 1, 0],
        [1, 1, 1, 1, 0, 0, 1],
    ]
    assert positions.tolist() == [[2, 3, 4, 5, 4]]


def test_a_window_keeps_head_and_tail_and_moves_in_blocks():
    def cut_at(length):
        return cut(Tree(tuple(range(length)), (9, 9), (-1, -1)), 16, head=2).trunk

    assert cut_at(14) == tuple(range(14))
    assert cut_at(15) == (0, 1, *range(6, 15))
    assert cut_at(18) == (0, 1, *range(6, 18))  # the same cut: the KV cache survives
    assert cut_at(19) == (0, 1, *range(10, 19))
    assert all(fits(Tree(cut_at(n), (9, 9), (-1, -1)), 16) for n in range(1, 60))
