"""A pair on another vocabulary, read through a bridge in one pass or two, against forwards."""

from dataclasses import replace

import numpy as np
import pytest
import torch

from adapter.errors import ContextTooLong
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT, _combined
from tests.support.tiny import tiny
from tests.tokenizer_maps import worlds
from tokenizer_maps import Clamp, Context, ExactBridge, FastBridge, Offsets, TokenMap
from tokenizer_maps.exact import ALWAYS
from tokenizer_maps.loading import load_vocabulary

OPEN = Clamp(np.inf, np.inf)
WEIGHTS = {"tuned": 1.0}


@pytest.fixture(scope="module")
def upstream():
    return load_vocabulary(f"hf:{tiny().upstream}")


@pytest.fixture(scope="module")
def pair():
    loaded = Pair.load({"tuned": str(tiny().other_expert)}, str(tiny().other_antiexpert), "cpu")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def token_map(upstream, pair):
    return TokenMap.build(upstream, pair.vocabulary)


def exact(token_map, pair, **changes):
    return ExactBridge(token_map, pair.end, OPEN, above=ALWAYS, **({"epsilon": 0.0} | changes))


def contexts(context):
    return {"tuned": context, ANTIEXPERT: context}


def forward(pair, name):
    """The slow twin of a scorer: a fresh forward for every path."""
    model = pair._models[name]

    def chances(path):
        with torch.inference_mode():
            logits = model.network(torch.tensor([path])).logits[0, -1].double()
        return torch.softmax(logits.masked_fill(model.blank, -torch.inf), -1).numpy()

    return chances


def candidates(upstream):
    texts = [i for i, token in enumerate(upstream.tokens) if len(token) > 2][:16]
    return [*texts, upstream.id_of(b"t"), upstream.id_of(b" "), *upstream.end, -1]


@pytest.mark.parametrize("kind", ["fast", "exact"])
async def test_a_reader_gives_the_bridges_offsets(upstream, pair, token_map, kind):
    bridge = FastBridge(token_map, pair.end, OPEN) if kind == "fast" else exact(token_map, pair)
    context = Context((1,), b"The harbour mas", ())
    reader = pair.reader(bridge, contexts(context), WEIGHTS, None)
    generated, wanted = (), candidates(upstream)
    two_passes = 0
    for token in upstream.encode(b"ter kept a ledger")[:6]:
        await reader.read(generated)
        found = await reader.offsets(wanted, [1 / len(wanted)] * len(wanted))
        again = await reader.offsets(wanted, [1 / len(wanted)] * len(wanted))
        plan = bridge.plan(replace(context, generated=generated))
        models = forward(pair, "tuned"), forward(pair, ANTIEXPERT)
        expected = worlds.offsets(bridge, plan, wanted, *models)
        np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3)
        np.testing.assert_array_equal(found.multi, expected.multi)
        np.testing.assert_allclose(again.delta, found.delta, atol=1e-5)
        assert (found.low is not None) == (kind == "exact")
        if found.low is not None:
            np.testing.assert_allclose(found.low, expected.low, atol=2e-3)
            np.testing.assert_allclose(found.high, expected.high, atol=2e-3)
            sets = bridge.sets(plan, wanted)
            masses = [worlds.evaluate(m, plan, sets) for m in models]
            two_passes += bridge.deeper(plan, sets, masses) is not None
        generated = (*generated, token)
    assert two_passes >= 5 * (kind == "exact")


async def test_a_second_pass_that_has_no_room_is_left_out(upstream, pair, token_map):
    context = Context((1,), b"The harbour mas", ())
    bridge, wanted = exact(token_map, pair), candidates(upstream)
    plan = bridge.plan(context)
    room = len(plan.tree.trunk) + len(plan.tree.tokens)
    reader = pair.reader(bridge, contexts(context), WEIGHTS, None)
    reader._window = replace(reader._window, size=room)
    await reader.read(())
    found = await reader.offsets(wanted)
    models = forward(pair, "tuned"), forward(pair, ANTIEXPERT)
    expected = worlds.offsets(bridge, plan, wanted, *models, passes=0)
    np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3)
    reader._window = replace(reader._window, size=room - 1)
    with pytest.raises(ContextTooLong, match="context window"):
        await reader.read(())


async def test_readers_of_one_prompt_read_it_once(upstream, pair, token_map):
    context = Context((1,), b"The harbour master kept a ledger of every ship", ())
    bridge = exact(token_map, pair)
    lengths = []
    handle = pair._models["tuned"].network.register_forward_pre_hook(
        lambda module, args, kwargs: lengths.append(kwargs["input_ids"].shape[1]), with_kwargs=True
    )
    readers = [pair.reader(bridge, contexts(context), WEIGHTS, None) for _ in range(3)]
    deltas = []
    for reader in readers:
        await reader.read(())
        deltas.append((await reader.offsets(candidates(upstream))).delta)
    handle.remove()
    first = lengths[0]
    assert first > 15
    assert all(length < first for length in lengths[1:])
    for delta in deltas[1:]:
        np.testing.assert_allclose(delta, deltas[0], atol=1e-4)


def test_several_experts_have_one_interval():
    no, two = np.zeros(2, bool), np.array([False, True])
    one = Offsets(np.array([1.0, -1.0]), no, no, no, two, np.array([0.5, -2.0]), np.ones(2))
    other = replace(one, capped=no)
    found = _combined([one, other], [1.0, -0.5])
    assert found.delta.tolist() == [0.5, -0.5]
    assert found.low.tolist() == [0.0, -2.5]
    assert found.high.tolist() == [0.75, 2.0]
    assert found.capped.tolist() == [False, True]
    blind = replace(one, low=None, high=None)
    assert _combined([one, blind], [1.0, 1.0]).low is None
