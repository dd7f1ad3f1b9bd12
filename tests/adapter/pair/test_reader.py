"""A pair on another vocabulary, read through a bridge at one place or several, against forwards."""

import asyncio
import gc
from dataclasses import replace

import numpy as np
import pytest
import torch

from adapter.errors import ContextTooLong, PairError
from adapter.pair.combining import combined, combined_whole
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT, Place
from tests.adapter.pair.networks import counted
from tests.support.tiny import tiny
from tests.tokenizer_maps import worlds
from tokenizer_maps import (
    Clamp,
    Context,
    ExactBridge,
    FastBridge,
    IdentityBridge,
    Offsets,
    TokenMap,
)
from tokenizer_maps.exact import ALWAYS
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.steps import Survey, Whole

OPEN = Clamp(np.inf, np.inf)
WEIGHTS = {"tuned": 1.0}
BEGINNING = Context((1,), b"The harbour mas", ())
DRAFT = b"ter kept a ledger"
FIELDS = ("delta", "low", "high")
FLAGS = ("unscored", "multi", "clamped", "capped")
KINDS = ("identity", "fast", "exact")


@pytest.fixture(scope="module")
def upstream():
    return load_vocabulary(f"hf:{tiny().upstream}")


def load(kind="other", **options):
    if kind == "identity":
        return Pair.load({"tuned": str(tiny().expert)}, str(tiny().antiexpert), "cpu", **options)
    experts = {"tuned": str(tiny().other_expert)}
    return Pair.load(experts, str(tiny().other_antiexpert), "cpu", **options)


@pytest.fixture(scope="module")
def pair():
    loaded = load()
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def same():
    """A pair on the upstream's own vocabulary."""
    loaded = load("identity")
    yield loaded
    loaded.close()


@pytest.fixture(scope="module")
def token_map(upstream, pair):
    return TokenMap.build(upstream, pair.vocabulary)


@pytest.fixture(scope="module", params=KINDS)
def both(request, upstream, pair, same, token_map):
    """A bridge and the pair it is for."""
    if request.param == "identity":
        return IdentityBridge(upstream), same
    if request.param == "fast":
        return FastBridge(token_map, pair.end, OPEN), pair
    return exact(token_map, pair), pair


def exact(token_map, pair, **changes):
    return ExactBridge(token_map, pair.end, OPEN, above=ALWAYS, **({"epsilon": 0.0} | changes))


def contexts(context):
    return {"tuned": context, ANTIEXPERT: context}


def open_reader(pair, bridge, context=BEGINNING, head=None):
    return pair.reader(bridge, contexts(context), WEIGHTS, head)


def forward(pair, name):
    """The slow twin: a fresh forward for every path."""
    model = pair._models[name]

    def chances(path):
        with torch.inference_mode():
            logits = model.network(torch.tensor([path]), use_cache=False).logits[0, -1].double()
        return torch.softmax(logits.masked_fill(model.blank, -torch.inf), -1).numpy()

    return chances


def candidates(upstream):
    texts = [i for i, token in enumerate(upstream.tokens) if len(token) > 2][:16]
    return (*texts, upstream.id_of(b"t"), upstream.id_of(b" "), *upstream.end, -1)


def place(upstream, generated=()):
    wanted = candidates(upstream)
    return Place(tuple(generated), wanted, (1 / len(wanted),) * len(wanted))


def draft(upstream, count=6):
    """Places along a draft, other candidates at each."""
    ids = upstream.encode(DRAFT)[:count]
    found = [place(upstream, ids[:j]) for j in range(len(ids))]
    return [replace(p, candidates=p.candidates[j:] + p.candidates[:j]) for j, p in enumerate(found)]


def assert_equal(found, expected, atol=1e-4):
    for name in FIELDS:
        one, other = getattr(found, name), getattr(expected, name)
        assert (one is None) == (other is None)
        if one is not None:
            np.testing.assert_allclose(one, other, atol=atol)
    for name in FLAGS:
        np.testing.assert_array_equal(getattr(found, name), getattr(expected, name))


async def alone(pair, bridge, one, context=BEGINNING, head=None):
    """What a reader says that has read nothing else."""
    reader = open_reader(pair, bridge, context, head)
    (found,) = await reader.offsets([one])
    reader.close()
    return found


@pytest.mark.parametrize("kind", ["fast", "exact"])
async def test_a_reader_gives_the_bridges_offsets(upstream, pair, token_map, kind):
    bridge = FastBridge(token_map, pair.end, OPEN) if kind == "fast" else exact(token_map, pair)
    reader = open_reader(pair, bridge)
    two_passes = 0
    for one in draft(upstream):
        await reader.read(one.generated)
        (found,) = await reader.offsets([one])
        (again,) = await reader.offsets([one])
        plan = bridge.plan(replace(BEGINNING, generated=one.generated))
        models = forward(pair, "tuned"), forward(pair, ANTIEXPERT)
        expected = worlds.offsets(bridge, plan, one.candidates, *models)
        np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3)
        np.testing.assert_array_equal(found.multi, expected.multi)
        np.testing.assert_allclose(again.delta, found.delta, atol=1e-5)
        assert (found.low is not None) == (kind == "exact")
        if found.low is not None:
            np.testing.assert_allclose(found.low, expected.low, atol=2e-3)
            np.testing.assert_allclose(found.high, expected.high, atol=2e-3)
            sets = bridge.sets(plan, one.candidates)
            masses = [worlds.evaluate(m, plan, sets) for m in models]
            two_passes += bridge.deeper(plan, sets, masses) is not None
    assert two_passes >= 5 * (kind == "exact")


async def test_the_places_of_a_draft_read_together_equal_each_alone(upstream, both):
    bridge, pair = both
    places = draft(upstream)
    reader = open_reader(pair, bridge)
    for found in [await reader.offsets(places), await reader.offsets(places[2:])]:
        for one, offsets in zip(places[-len(found) :], found, strict=True):
            assert_equal(offsets, await alone(pair, bridge, one))
    assert await reader.offsets([]) == []


async def test_any_way_to_a_place_gives_the_same(upstream, both):
    """Drafted, accepted half-way, rolled back, with another token, evicted."""
    bridge, pair = both
    places = draft(upstream)
    reader = open_reader(pair, bridge)
    await reader.offsets(places)
    other = place(upstream, (*places[3].generated, upstream.id_of(b"t")))
    ways = [[places[3], places[4]], [places[1]], [other], places[2:5]]
    for some in ways:
        await reader.read(some[0].generated)
        for one, found in zip(some, await reader.offsets(some), strict=True):
            assert_equal(found, await alone(pair, bridge, one))
    for network, text in reader._texts.values():
        network.forget(text)
    (found,) = await reader.offsets([other])
    assert_equal(found, await alone(pair, bridge, other))


async def test_an_accepted_draft_is_not_read_again(upstream, same):
    """Identity: a node a token. Along the draft only what was never read costs anything."""
    bridge, places = IdentityBridge(upstream), draft(upstream)
    reader = open_reader(same, bridge)
    await reader.read(())
    with counted(same._networks["tuned"]) as lengths:
        await reader.offsets(places)
        assert lengths == [len(places) - 1]
        await reader.offsets([places[4]])
        assert lengths == [len(places) - 1]
        at = (*places[3].generated, upstream.id_of(b"t"))
        await reader.read(at)
        assert lengths == [len(places) - 1, 1]
        await reader.offsets([place(upstream, (*at, 5, 6, 7)[: len(at) + j]) for j in range(4)])
    assert lengths == [len(places) - 1, 1, 3]


async def test_a_draft_is_one_forward_and_a_second_where_the_bridge_asks(upstream, pair, token_map):
    places = draft(upstream)
    for bridge, passes in [(FastBridge(token_map, pair.end), 1), (exact(token_map, pair), 2)]:
        reader = open_reader(pair, bridge)
        await reader.read(())
        with counted(pair._networks["tuned"]) as lengths:
            await reader.offsets(places)
        assert len(lengths) == passes
        reader.close()


async def test_a_second_pass_that_has_no_room_is_left_out(upstream, pair, token_map):
    bridge, one = exact(token_map, pair), place(upstream)
    plan = bridge.plan(BEGINNING)
    room = len(plan.tree.trunk) + len(plan.tree.tokens)
    reader = open_reader(pair, bridge)
    reader._window = replace(reader._window, size=room)
    await reader.read(())
    (found,) = await reader.offsets([one])
    models = forward(pair, "tuned"), forward(pair, ANTIEXPERT)
    expected = worlds.offsets(bridge, plan, one.candidates, *models, passes=0)
    np.testing.assert_allclose(found.delta, expected.delta, atol=1e-3)
    reader._window = replace(reader._window, size=room - 1)
    with pytest.raises(ContextTooLong, match="context window"):
        await reader.read(())


async def test_a_draft_is_too_long_where_its_longest_place_is(upstream, same):
    places = draft(upstream)
    bridge = IdentityBridge(upstream)
    reader = open_reader(same, bridge)
    longest = bridge.plan(replace(BEGINNING, generated=places[-1].generated)).tree
    reader._window = replace(reader._window, size=len(longest.trunk) - 1)
    with pytest.raises(ContextTooLong):
        await reader.offsets(places)
    assert len(await reader.offsets(places[:-1])) == len(places) - 1


@pytest.mark.parametrize("head", [0, 1])
async def test_a_window_that_moves_within_a_draft_changes_nothing(upstream, both, head):
    bridge, pair = both
    places = draft(upstream)
    longest = bridge.plan(replace(BEGINNING, generated=places[-1].generated)).tree
    reader = open_reader(pair, bridge, head=head)
    size = len(longest.trunk) + len(longest.tokens) - 2
    reader._window = replace(reader._window, size=size)
    together = await reader.offsets(places)
    assert reader.context_cut
    for one, found in zip(places, together, strict=True):
        single = open_reader(pair, bridge, head=head)
        single._window = reader._window
        assert_equal(found, (await single.offsets([one]))[0])
        single.close()


async def test_readers_of_one_prompt_read_it_once(upstream, same):
    context = Context((0, 0), b"The harbour master kept a ledger of every ship", ())  # no other's
    bridge = IdentityBridge(upstream)
    length = len(bridge.plan(context).tree.trunk)
    with counted(same._networks["tuned"]) as lengths:
        readers = [open_reader(same, bridge, context) for _ in range(3)]
        await asyncio.gather(*(reader.read(()) for reader in readers))
        assert sum(lengths) == length + 2  # the last token of each has a row of its own
        found = [(await reader.offsets([place(upstream)]))[0] for reader in readers]
    assert sum(lengths) == length + 2
    for one in found[1:]:
        assert_equal(one, found[0])


async def test_concurrent_readers_share_forwards_and_equal_each_alone(upstream, both):
    bridge, pair = both
    starts = [Context((1,), f"The {n} harbour mas".encode(), ()) for n in range(12)]
    places = draft(upstream)
    expected = [await alone(pair, bridge, places[n % 4], at) for n, at in enumerate(starts)]
    readers = [open_reader(pair, bridge, at) for at in starts]

    async def walk(n):
        await readers[n].read(())
        await readers[n].offsets(places[: n % 4 + 1])
        return (await readers[n].offsets([places[n % 4]]))[0]

    with counted(pair._networks["tuned"]) as lengths:
        found = await asyncio.gather(*(walk(n) for n in range(12)))
    assert len(lengths) < 24
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)


async def test_readers_that_do_not_all_fit_take_turns(upstream, token_map):
    """Memory for little more than one of them: each is read again and again, none is wrong."""
    bridge = FastBridge(token_map, frozenset({0}), OPEN)
    roomy, tight = load(), load()
    starts = [Context((1,), f"{n} harbours and {n} ships".encode(), ()) for n in range(5)]
    places = draft(upstream)
    expected = [await alone(roomy, bridge, places[3], at) for at in starts]
    for network in set(tight._networks.values()):
        network.pool.most = 60
    readers = [open_reader(tight, bridge, at) for at in starts]

    async def walk(reader):
        for one in places[:3]:
            await reader.offsets([one])
        return (await reader.offsets([places[3]]))[0]

    found = await asyncio.gather(*map(walk, readers))
    for one, other in zip(found, expected, strict=True):
        assert_equal(one, other)
    long = open_reader(tight, bridge, Context((1,), b"The tide " * 40, ()))
    with pytest.raises(ContextTooLong, match="memory for 60 tokens"):
        await long.read(())
    (again,) = await readers[0].offsets([places[3]])
    assert_equal(again, expected[0])
    roomy.close()
    tight.close()


def test_memory_for_no_token_at_all_is_refused():
    with pytest.raises(PairError, match="kv_memory"):
        load(kv_memory=100)


def test_memory_is_shared_out_by_what_a_token_takes():
    loaded = load(kv_memory=10**6)
    networks = set(loaded._networks.values())
    assert sum(n.pool.most * n.token_bytes for n in networks) <= 10**6
    assert all(n.pool.most == 10**6 // sum(m.token_bytes for m in networks) for n in networks)
    loaded.close()


def slots(pair):
    return [network.pool.used for network in pair._networks.values()]


async def settled(pair, upstream):
    """A round of another reader: what was released before it is free."""
    reader = open_reader(pair, IdentityBridge(upstream), Context((1,), b"x", ()))
    await reader.read(())
    reader.close()


async def test_slots_come_back_by_close_by_collection_and_by_cancelling(upstream):
    pair, bridge = load("identity"), IdentityBridge(upstream)
    await settled(pair, upstream)
    nothing = [2, 2]  # the settling reader's own
    reader = open_reader(pair, bridge)
    await reader.offsets(draft(upstream))
    reader.close()
    reader.close()
    await settled(pair, upstream)
    assert slots(pair) == nothing
    with pytest.raises(RuntimeError, match="closed"):
        await reader.read(())
    await open_reader(pair, bridge).read(())
    gc.collect()
    await settled(pair, upstream)
    assert slots(pair) == nothing
    kept = open_reader(pair, bridge, Context((1,), b"The harbour " * 100, ()))
    task = asyncio.create_task(kept.read(()))
    await asyncio.sleep(0)
    task.cancel()
    with pytest.raises(asyncio.CancelledError):
        await task
    await settled(pair, upstream)
    assert slots(pair) == nothing
    pair.close()


async def test_an_error_of_one_reader_is_its_own(upstream, same, monkeypatch):
    bridge = IdentityBridge(upstream)
    good, bad = open_reader(same, bridge), open_reader(same, bridge, Context((), b"", ()))
    one = place(upstream)
    results = await asyncio.gather(
        good.offsets([one]), bad.offsets([one]), good.read(()), return_exceptions=True
    )
    assert isinstance(results[1], ValueError)
    assert results[2] is None
    assert_equal(results[0][0], await alone(same, bridge, one))


async def test_a_forward_that_fails_is_told_and_forgotten(upstream, monkeypatch):
    pair, bridge, one = load("identity"), IdentityBridge(upstream), place(upstream)
    reader = open_reader(pair, bridge)
    network = pair._networks["tuned"]

    def fail(*args, **kwargs):
        raise MemoryError("no more")

    with monkeypatch.context() as patch:
        patch.setattr(network, "_read", fail)
        with pytest.raises(MemoryError):
            await reader.read(())
    (found,) = await reader.offsets([one])
    assert_equal(found, await alone(pair, bridge, one))
    pair.close()


async def test_what_waits_when_a_pair_is_closed_is_cancelled(upstream):
    pair = load("identity")
    reader = open_reader(pair, IdentityBridge(upstream), Context((1,), b"The harbour " * 100, ()))
    task = asyncio.create_task(reader.read(()))
    await asyncio.sleep(0)
    pair.close()
    with pytest.raises((asyncio.CancelledError, ContextTooLong)):
        await task
    with pytest.raises(RuntimeError):
        await reader.read(())


# --- the whole vocabulary


async def test_the_whole_vocabulary_is_that_of_the_fresh_forwards(upstream, same):
    bridge, places = IdentityBridge(upstream), draft(upstream)
    reader = open_reader(same, bridge)
    await reader.offsets(places)
    for at in (places[0].generated, places[4].generated, (*places[2].generated, 9)):
        found = await reader.whole(at)
        trunk = bridge.plan(replace(BEGINNING, generated=at)).tree.trunk
        size = len(upstream.tokens)
        expert, anti = (np.log(forward(same, name)(trunk))[:size] for name in ("tuned", ANTIEXPERT))
        np.testing.assert_allclose(found.prior, anti, atol=1e-4)
        np.testing.assert_allclose(found.delta, expert - anti, atol=1e-4)
        assert (found.high >= found.delta - 1e-9).all()


async def test_the_whole_vocabulary_through_a_bridge(upstream, pair, token_map):
    bridge = FastBridge(token_map, pair.end, OPEN)
    reader = open_reader(pair, bridge)
    places = draft(upstream)
    await reader.offsets(places)
    found = await reader.whole(places[3].generated)
    fresh = open_reader(pair, bridge)
    again = await fresh.whole(places[3].generated)
    assert len(found.prior) >= len(upstream.tokens)
    for name in ("prior", "delta", "high"):
        one, other = getattr(found, name), getattr(again, name)
        finite = np.isfinite(one)
        np.testing.assert_array_equal(finite, np.isfinite(other))
        np.testing.assert_allclose(one[finite], other[finite], atol=1e-4)


def test_several_experts_have_one_interval():
    no, two = np.zeros(2, bool), np.array([False, True])
    one = Offsets(np.array([1.0, -1.0]), no, no, no, two, np.array([0.5, -2.0]), np.ones(2))
    other = replace(one, capped=no)
    found = combined([one, other], [1.0, -0.5])
    assert found.delta.tolist() == [0.5, -0.5]
    assert found.low.tolist() == [0.0, -2.5]
    assert found.high.tolist() == [0.75, 2.0]
    assert found.capped.tolist() == [False, True]
    blind = replace(one, low=None, high=None)
    assert combined([one, blind], [1.0, 1.0]).low is None


class Plain:
    """A bridge's last step on surveys with intervals."""

    def whole(self, expert, antiexpert):
        delta = expert.scores - antiexpert.scores
        return Whole(antiexpert.scores, delta, expert.high - antiexpert.low)


def test_several_experts_have_one_highest_offset():
    anti = Survey(
        *(np.array(row) for row in ([-1.0, -2.0], [-1.5, -2.0], [-0.5, -2.0], [-1.0, -2.0]))
    )
    one = Survey(
        *(np.array(row) for row in ([-0.5, -3.0], [-0.7, -3.5], [-0.3, -2.5], [-0.5, -3.0]))
    )
    other = Survey(
        *(np.array(row) for row in ([-2.0, -1.0], [-2.5, -1.0], [-1.0, -1.0], [-2.0, -1.0]))
    )
    found = combined_whole(Plain(), [one, other], anti, [2.0, -0.5])
    np.testing.assert_allclose(found.prior, anti.scores)
    np.testing.assert_allclose(found.delta, [2 * 0.5 - 0.5 * -1.0, 2 * -1.0 - 0.5 * 1.0])
    lowest = other.low - anti.high  # of the second expert's offset
    np.testing.assert_allclose(found.high, 2 * (one.high - anti.low) - 0.5 * lowest)
