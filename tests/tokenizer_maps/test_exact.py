"""The exact bridge against brute force on tiny worlds, and its second pass on larger ones."""

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import cache

import numpy as np
import pytest

from tests.tokenizer_maps import tiny, worlds
from tokenizer_maps import Clamp, Context, ExactBridge, FastBridge, TokenMap, Vocabulary
from tokenizer_maps.exact import ALWAYS
from tokenizer_maps.reference import Model, Oracle

OPEN = Clamp(np.inf, np.inf)
FACTORS = (1.0, 0.1, 0.001)


@dataclass(frozen=True, eq=False)
class World:
    """A place in a text of two random tokenizers, and two random models that read it."""

    map: TokenMap
    experts: tuple[Oracle, Oracle]
    context: Context
    candidates: list[int]

    def bridge(self, epsilon: float, cap: int = 64, floor: float = 0.0) -> ExactBridge:
        """An exact bridge without clamps."""
        ends = self.map.pair.end
        return ExactBridge(self.map, ends, OPEN, floor, above=ALWAYS, epsilon=epsilon, cap=cap)

    def masses(self, n: int, bridge: ExactBridge, passes: int) -> tuple[np.ndarray, ...]:
        """(low, mass, high, by brute force) of the candidates one token or path reaches.

        For one of the models; its end head weighs 1.
        """
        oracle = self.experts[n]
        plan = bridge.plan(self.context)
        (found,) = worlds.readings(bridge, plan, self.candidates, [oracle.model], passes=passes)
        assert found.low is not None
        assert found.high is not None
        z = oracle.context_mass(self.context, self.candidates)
        single = ~found.multi
        expected = np.array(oracle.exact_masses(self.context, self.candidates))[single]
        logs = (found.low, found.scores, found.high)
        return *(np.exp(log)[single] * z for log in logs), expected


@cache
def tiny_worlds(count: int) -> tuple[World, ...]:
    return tuple(make_worlds(count))


def make_worlds(count: int) -> Iterator[World]:
    """Alphabets of two and three bytes, with and without a pre-tokenizer, all candidates or few."""
    for seed in range(count):
        separator = tiny.SEPARATOR if seed % 2 else b""
        alphabet = (b"abc" if seed % 3 == 0 else b"ab") + separator
        upstream = tiny.vocabulary(seed, alphabet, 4 + seed % 4, separator)
        pair = tiny.vocabulary(seed + 1000, alphabet, 2 + seed % 5, separator)
        token_map = TokenMap.build(upstream, pair)
        for factor in FACTORS:
            rng = np.random.default_rng([seed, int(1000 * factor)])
            models = (tiny.model(seed + n, pair, factor) for n in (0, 500))
            plus, minus = (Oracle(model, upstream, pair, pair.end) for model in models)
            text = bytes(rng.choice(list(alphabet), rng.integers(0, 5)).tolist())
            ids = np.arange(1, len(upstream.tokens))
            some = ids if seed % 4 else rng.choice(ids, 4, replace=False)
            yield World(token_map, (plus, minus), Context((tiny.END,), text, ()), some.tolist())


def test_exact_is_exact() -> None:
    """At ε = 0 and with as many passes as it takes, no width is left."""
    checked, expanded = 0, 0
    for world in tiny_worlds(30):
        bridge = world.bridge(epsilon=0.0, cap=10**6)
        for n in (0, 1):
            low, mass, high, expected = world.masses(n, bridge, passes=99)
            unit = max(1.0, expected.max(initial=0.0))
            for found in (low, mass, high):
                np.testing.assert_allclose(found, expected, rtol=0, atol=1e-12 * unit)
            checked += len(expected)
            fast = [world.experts[n].fast_mass(world.context, c) for c in world.candidates]
            expanded += not np.allclose(sorted(fast)[-len(expected) :], sorted(expected))
    assert checked >= 300
    assert expanded >= 60  # worlds in which the second pass has something to say


@pytest.mark.parametrize("epsilon", [0.1, 0.01, 0.001])
def test_one_more_pass_gives_an_interval(epsilon: float) -> None:
    checked = proper = 0
    for world in tiny_worlds(30):
        for n in (0, 1):
            low, mass, high, expected = world.masses(n, world.bridge(epsilon, cap=4), passes=1)
            slack = 1e-12 * max(1.0, expected.max(initial=0.0))
            assert (low <= expected + slack).all()
            assert (expected <= high + slack).all()
            assert (low <= mass + slack).all()
            assert (mass <= high + slack).all()
            checked += len(expected)
            proper += int((high - low > 1e-6).sum())
    assert checked >= 300  # for each of three ε
    assert proper >= 100


def test_the_interval_of_the_offset_holds_the_exact_offset() -> None:
    checked = 0
    for world in tiny_worlds(30):
        bridge = world.bridge(0.03, cap=3, floor=1e-6)
        plan = bridge.plan(world.context)
        models = [oracle.model for oracle in world.experts]
        found = worlds.offsets(bridge, plan, world.candidates, *models)
        logs = []
        for oracle in world.experts:
            masses = np.array(oracle.exact_masses(world.context, world.candidates))
            z = oracle.context_mass(world.context, world.candidates)
            logs.append(np.log(masses + 1e-6) - np.log(z))
        single = ~found.multi
        assert found.low is not None
        assert found.high is not None
        expected = logs[0] - logs[1]
        assert (found.low <= expected + 1e-9)[single].all()
        assert (expected <= found.high + 1e-9)[single].all()
        assert (found.low <= found.delta + 1e-9).all()
        assert (found.delta <= found.high + 1e-9).all()
        assert np.isfinite([found.low, found.delta, found.high]).all()
        checked += int(single.sum())
    assert checked > 200


def test_wide_ranges_widen_the_interval_and_keep_it_right(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tokenizer_maps.exact.WIDE", 1)
    wider = 0
    for world in tiny_worlds(30):
        low, _, high, expected = world.masses(0, world.bridge(0.0, cap=10**6), passes=99)
        slack = 1e-12 * max(1.0, expected.max(initial=0.0))
        assert (low <= expected + slack).all()
        assert (expected <= high + slack).all()
        wider += bool((high - low > 1e-6).any())
    assert wider > 10


def test_events_are_a_partition() -> None:
    """Every path is one token's, so that all of them together are no more than the text."""
    for world in tiny_worlds(30):
        oracle, (fixed, text) = world.experts[0], (world.context.fixed, world.context.prompt)
        masses = oracle.exact_masses(world.context, world.candidates)
        own = np.exp(oracle.log_path(fixed, oracle.pair.encode(text)))
        whole = oracle.context_mass_of(fixed, text, canonical=False)
        assert sum(masses) * own <= whole * (1 + 1e-12)


def test_moving_the_mass_is_right() -> None:
    """Against the upstream's own event, by brute force, in worlds with a pre-tokenizer.

    Not moved, a path counts for its beginning as well as for what it becomes.
    """
    errors = []
    for seed in range(12):
        separator = tiny.SEPARATOR
        upstream = tiny.vocabulary(seed, b"ab" + separator, 4 + seed % 3, separator, 3)
        pair = tiny.vocabulary(seed + 1000, b"ab" + separator, 2 + seed % 4, separator, 3)
        text = [b"", b"a", b"ab", b"b", b".", b"a."][seed % 6]
        context, candidates = Context((tiny.END,), text, ()), [*range(1, len(upstream.tokens))]
        for factor in FACTORS:
            oracle = Oracle(tiny.model(seed, pair, factor), upstream, pair, pair.end)
            scale = np.exp(oracle.log_path((tiny.END,), pair.encode(text)))
            events = [oracle.event_mass((tiny.END,), text, c, 5) for c in candidates]
            single = [0.0 if oracle.is_multi(context, c) else 1.0 for c in candidates]
            fast = np.array([oracle.fast_mass(context, c) for c in candidates]) * single
            kept = oracle.exact_masses(context, candidates, moving=False)
            moved = oracle.exact_masses(context, candidates)
            true = np.array(events) / scale
            errors.append([np.abs(np.array(one) - true).sum() for one in (moved, kept, fast)])
    moved, kept, fast = np.mean(errors, axis=0)
    assert moved < 0.5 * kept < 0.5 * fast
    # What later bytes still change is beyond any interval of the partition: it stays an estimate.
    assert 0.01 < moved < 0.15


def test_nested_tokenizers_make_the_interval_the_events_own() -> None:
    """No later byte can change the upstream's token: then the interval holds the true event."""
    checked = 0
    for seed in range(8):
        pair = tiny.vocabulary(seed, b"ab.", 6, b".", 3)
        upstream = tiny.vocabulary(seed, b"ab.", 0, b".", 1)  # bytes: each pair token begins with
        token_map = TokenMap.build(upstream, pair)  # one that nothing can change
        oracle = Oracle(tiny.model(seed, pair, 0.0), upstream, pair, pair.end)
        for text in (b"", b"a", b"ba", b"ab."):
            context = Context((tiny.END,), text, ())
            bridge = ExactBridge(token_map, pair.end, OPEN, 0.0, above=ALWAYS)
            candidates = [1, 2, 3]
            plan = bridge.plan(context)
            (found,) = worlds.readings(bridge, plan, candidates, [oracle.model])
            prefix = oracle.prefix_mass((tiny.END,), text)
            for c, low, high in zip(candidates, found.low, found.high, strict=True):  # type: ignore[arg-type]
                event = np.log(oracle.event_mass((tiny.END,), text, c, 4) / prefix)
                assert low == pytest.approx(event, abs=1e-10)
                assert high == pytest.approx(event, abs=1e-10)
                checked += 1
    assert checked == 96


# --- on trained tokenizers


ENDS = frozenset({1})
BOS = (0,)


@pytest.fixture(scope="module")
def models(digits: Vocabulary) -> tuple[Model, Model]:
    return worlds.hash_model("expert", digits, 3.0), worlds.hash_model("antiexpert", digits, 3.0)


def numbers(gpt: Vocabulary) -> list[int]:
    return [i for i, token in enumerate(gpt.tokens) if token.isdigit() and len(token) < 5]


def test_a_number_is_followed_digit_by_digit(
    token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary, models: tuple[Model, Model]
) -> None:
    context, candidates = Context(BOS, b"in the year\n", ()), numbers(gpt)
    assert len(candidates) > 12
    exact = ExactBridge(token_map, ENDS, OPEN, above=ALWAYS, epsilon=0.0, cap=10**6)
    plan = exact.plan(context)
    found = worlds.offsets(exact, plan, candidates, *models, passes=99)
    assert not found.multi.any()
    assert not found.capped.any()
    logs = []
    for model in models:
        masses = np.array(Oracle(model, gpt, digits, ENDS).exact_masses(context, candidates))
        logs.append(np.log(masses + 1e-6))
    np.testing.assert_allclose(found.delta - found.delta[0], (d := logs[0] - logs[1]) - d[0])


def test_auto_takes_the_second_pass_where_it_matters(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    auto = ExactBridge(token_map, ENDS, OPEN, epsilon=1e-9)
    fast = FastBridge(token_map, ENDS, OPEN)
    context = Context(BOS, b"in the year\n", ())
    the, number = gpt.id_of(b" the"), max(numbers(gpt), key=lambda i: len(gpt.tokens[i]))
    assert the is not None
    plan, candidates = auto.plan(context), [the, number]
    for share, bounded in ((0.05, False), (0.2, True)):
        chances = [0.8 - share, share]
        found = worlds.offsets(auto, plan, candidates, *models, chances=chances)
        assert (found.low is not None) == bounded
        assert found.multi.tolist() == [False, not bounded]
        if not bounded:
            expected = worlds.offsets(fast, plan, candidates, *models)
            np.testing.assert_array_equal(found.delta, expected.delta)


def test_a_full_tree_says_so(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    context, candidates = Context(BOS, b"in the year\n", ()), [gpt.id_of(b"e"), *numbers(gpt)]
    bridge = ExactBridge(token_map, ENDS, OPEN, above=ALWAYS, epsilon=0.0, cap=2)
    plan = bridge.plan(context)
    sets = bridge.sets(plan, candidates)  # type: ignore[arg-type]
    masses = [worlds.evaluate(model, plan, sets) for model in models]
    deeper = bridge.deeper(plan, sets, masses)
    assert deeper is not None
    assert len(deeper.tree.tokens) == len(plan.tree.tokens) + 2
    assert deeper.tree.tokens[: len(plan.tree.tokens)] == plan.tree.tokens
    found = worlds.offsets(bridge, plan, candidates, *models)  # type: ignore[arg-type]
    assert found.capped.any()
    assert not found.capped[0]
    free = worlds.offsets(replace(bridge, cap=64), plan, candidates, *models)  # type: ignore[arg-type]
    for left, right in ((found, free),):
        assert left.low is not None
        assert right.low is not None
        assert (left.high - left.low).sum() > (right.high - right.low).sum()  # type: ignore[operator]


def test_the_likeliest_candidates_are_followed_first(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    context = Context(BOS, b"in the year\n", ())
    candidates = [i for i in numbers(gpt) if len(gpt.tokens[i]) > 1]
    bridge = ExactBridge(token_map, ENDS, OPEN, above=ALWAYS, epsilon=0.0, cap=1)
    plan = bridge.plan(context)
    firsts = set()
    for wanted in range(len(candidates)):
        chances = [0.999 if n == wanted else 1e-6 for n in range(len(candidates))]
        sets = bridge.sets(plan, candidates, chances)
        masses = [worlds.evaluate(model, plan, sets) for model in models]
        deeper = bridge.deeper(plan, sets, masses)
        assert deeper is not None
        (inner,) = deeper.inner
        assert gpt.tokens[candidates[wanted]].startswith(inner.spelt)
        firsts.add(inner.spelt)
    assert len(firsts) > 1


def test_the_trunk_may_be_cut_elsewhere(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    from tests.tokenizer_maps.test_bridge import cut_earlier, pick

    bridge, cut = ExactBridge(token_map, ENDS, OPEN, above=ALWAYS), 0
    for n, context in enumerate(worlds.contexts(gpt, 12, BOS)):
        plan = bridge.plan(context)
        if len(plan.tree.trunk) <= 2:
            continue
        cut += 1
        candidates = pick(gpt, context, n)
        here = worlds.offsets(bridge, plan, candidates, *models)
        there = worlds.offsets(bridge, cut_earlier(plan, 2), candidates, *models)
        for name in ("low", "delta", "high"):
            np.testing.assert_allclose(getattr(there, name), getattr(here, name), atol=1e-11)
        np.testing.assert_array_equal(there.multi, here.multi)
    assert cut > 5


def test_a_candidate_named_twice_is_scored_twice(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    bridge = ExactBridge(token_map, ENDS, OPEN, above=ALWAYS)
    candidates = [*numbers(gpt)[:6], *numbers(gpt)[:6]]
    found = worlds.offsets(bridge, bridge.plan(Context(BOS, b"1", ())), candidates, *models)
    np.testing.assert_array_equal(found.delta[:6], found.delta[6:])
    np.testing.assert_array_equal(found.low[:6], found.low[6:])  # type: ignore[index]
