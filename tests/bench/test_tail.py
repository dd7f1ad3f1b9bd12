"""The bench of the hidden tail reads its models as anybody would."""

import math

import numpy as np
import pytest
import torch

from adapter.pair.loading import LocalModel, load_model
from tests.bench.tail import LEAST, Pair, _evaluated, _kl
from tests.support.tiny import tiny
from tokenizer_maps import Clamp, Context, FastBridge, TokenMap


@pytest.fixture(scope="module")
def models() -> tuple[LocalModel, LocalModel, LocalModel]:
    """An upstream, and a pair with another tokenizer."""
    made = tiny()
    names = (made.upstream, made.other_expert, made.other_antiexpert)
    upstream, expert, anti = (load_model(str(name), "cpu", "float32") for name in names)
    return upstream, expert, anti


def contexts(upstream: LocalModel) -> list[Context]:
    texts = (b"The harbour ma", b"for i in ra", b"In 19", b"a  ")
    ids = upstream.vocabulary.encode(b"ster kept")
    return [Context((1,), text, generated) for text in texts for generated in ((), ids)]


def test_trees_are_read_as_single_paths(models: tuple[LocalModel, ...]) -> None:
    upstream, expert, anti = models
    bridge = FastBridge(TokenMap.build(upstream.vocabulary, anti.vocabulary), anti.end, Clamp())
    branched = 0
    for context in contexts(upstream):
        plan = bridge.plan(context)
        found = _evaluated(expert, plan, bridge.surveyed(plan))
        for node, logs in zip(bridge.surveyed(plan), found.rows, strict=True):
            path: list[int] = []
            at = node
            while at >= 0:
                path.insert(0, plan.tree.tokens[at])
                at = plan.tree.parents[at]
            with torch.inference_mode():
                fresh = expert.network(torch.tensor([[*plan.tree.trunk, *path]])).logits[0, -1]
            expected = fresh.double().log_softmax(-1).numpy()
            np.testing.assert_allclose(logs, expected, rtol=0, atol=1e-4)
            branched += len(path) > 0
    assert branched > 5


def test_surveys_agree_with_candidates(models: tuple[LocalModel, ...]) -> None:
    """Through the bench's own sums; all but the clamped, up to Z."""
    upstream, expert, anti = models
    pair = Pair(upstream.vocabulary, expert, anti)
    ids = list(range(len(upstream.vocabulary.tokens)))
    for context in contexts(upstream):
        pair.read(context)
        offsets, whole = pair.offsets(ids), pair.whole()
        shift = (offsets.delta - whole.delta)[~offsets.unscored & ~offsets.clamped]
        assert np.ptp(shift) < 0.05  # rare tokens over the end of the text are left out of surveys


def test_one_tokenizer_is_no_bridge(models: tuple[LocalModel, ...]) -> None:
    _, expert, anti = models
    pair = Pair(anti.vocabulary, expert, anti)
    assert pair.identity
    pair.read(Context((1,), b"The harbour", ()))
    ids = list(range(len(anti.vocabulary.tokens)))
    np.testing.assert_array_equal(pair.offsets(ids).delta, pair.whole().delta)


def test_what_was_dropped_costs_a_finite_kl() -> None:
    truth = np.log([0.5, 0.5, 1e-300])
    dropped = np.array([0.0, math.log(LEAST), math.log(LEAST)])
    assert _kl(truth, dropped) == pytest.approx(0.5 * math.log(0.5) + 0.5 * math.log(0.5 / LEAST))
    never = np.array([0.0, -math.inf])
    assert _kl(never, np.array([0.0, math.log(LEAST)])) == 0.0
