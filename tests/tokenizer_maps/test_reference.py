"""Brute force: the oracle against the laws of probability, the fast rule against the oracle."""

from collections.abc import Iterator
from itertools import product
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer_maps import tiny, worlds
from tokenizer_maps import Clamp, Context, FastBridge, TokenMap, Vocabulary, load_vocabulary
from tokenizer_maps.reference import Oracle

LONGEST = 6
BOS = (0,)  # <|end|> begins a text, too
TEXTS = [b"", b"a", b"ab", b"aba", b"b ", b"ab a", b" b", b"bb"]


@pytest.fixture(scope="module")
def nested(folder: Path) -> tuple[Vocabulary, Vocabulary]:
    coarse, fine = worlds.nested()
    return (
        load_vocabulary(worlds.write(folder / "fine", fine, "<|end|>")),
        load_vocabulary(worlds.write(folder / "coarse", coarse, "<|end|>")),
    )


@pytest.fixture(scope="module")
def oracles(nested: tuple[Vocabulary, Vocabulary]) -> list[Oracle]:
    upstream, pair = nested
    models = [worlds.canonical_model(name, pair, 1, b"ab ", LONGEST) for name in ("+", "-")]
    return [Oracle(model, upstream, pair, pair.end) for model in models]


def spelt_with(vocabulary: Vocabulary, alphabet: bytes) -> list[int]:
    tokens = enumerate(vocabulary.tokens)
    return [i for i, token in tokens if token and set(token) <= set(alphabet)]


def test_the_pair_is_nested(nested: tuple[Vocabulary, Vocabulary]) -> None:
    upstream, pair = nested
    fine, coarse = (len(spelt_with(v, b"ab ")) for v in nested)
    assert 3 < fine < coarse
    assert {upstream.tokens[i] for i in spelt_with(upstream, b"ab ")} <= set(pair.tokens)


@pytest.mark.parametrize("text", [b"a", b"ab", b" a"])
def test_prefix_mass_obeys_the_chain_rule(
    nested: tuple[Vocabulary, Vocabulary], text: bytes
) -> None:
    """The text goes on with one of 256 bytes, or ends here."""
    upstream, pair = nested
    oracle = Oracle(worlds.hash_model("any", pair), upstream, pair, pair.end)
    going_on = sum(oracle.prefix_mass(BOS, text + bytes([b])) for b in range(256))
    exact = [path for path in oracle._covers(text) if pair.decode(path) == text]
    ending = sum(np.exp(oracle.log_path(BOS, path)) * oracle.model(BOS + path)[0] for path in exact)
    assert oracle.prefix_mass(BOS, text) == pytest.approx(going_on + ending, abs=1e-12)


@pytest.mark.parametrize("text", TEXTS)
def test_events_and_the_end_are_parts_of_the_prefix(oracles: list[Oracle], text: bytes) -> None:
    oracle = oracles[0]
    candidates = spelt_with(oracle.upstream, b"ab ")
    events = [oracle.event_mass(BOS, text, c, LONGEST) for c in candidates]
    path = oracle.pair.encode(text)
    end = np.exp(oracle.log_path(BOS, path)) * oracle.model(BOS + path)[0]
    total, prefix = sum(events) + end, oracle.prefix_mass(BOS, text)
    assert 0 < total <= prefix + 1e-12
    if not text:
        assert total == pytest.approx(1.0, abs=1e-12)


@pytest.mark.parametrize("text", TEXTS)
def test_nested_vocabularies_are_exact(oracles: list[Oracle], text: bytes) -> None:
    """Where pair tokens are unions of upstream tokens, the fast rule is the event itself.

    Of a text that ends here or goes on with an upstream token of its own.
    """
    upstream, pair = oracles[0].upstream, oracles[0].pair
    token_map = TokenMap.build(upstream, pair)
    bridge = FastBridge(token_map, pair.end, Clamp(np.inf, np.inf), floor=0.0)
    plan = bridge.plan(Context(BOS, text, ()))
    candidates = spelt_with(upstream, b"ab ")
    found = worlds.offsets(bridge, plan, candidates, *(oracle.model for oracle in oracles))
    checked = 0
    path = pair.encode(text)
    whole = [
        oracle.boundary_mass(BOS, text, LONGEST)
        + np.exp(oracle.log_path(BOS, path)) * oracle.model(BOS + path)[0]
        for oracle in oracles
    ]
    for c, delta in zip(candidates, found.delta, strict=True):
        events = [oracle.event_mass(BOS, text, c, LONGEST) for oracle in oracles]
        if min(events) > 0:
            checked += 1
            logs = [np.log(event / z) for event, z in zip(events, whole, strict=True)]
            assert delta == pytest.approx(logs[0] - logs[1], abs=1e-10)
    assert checked >= 2
    assert not found.multi.any()


def test_heads_matter_in_the_nested_world(oracles: list[Oracle]) -> None:
    """The check above would not notice missing heads if no text had any."""
    bridge = FastBridge(TokenMap.build(oracles[0].upstream, oracles[0].pair), frozenset({0}))
    heads = [len(bridge.plan(Context(BOS, text, ())).heads) for text in TEXTS]
    assert sum(count > 1 for count in heads) >= 4
    candidates = spelt_with(oracles[0].upstream, b"ab ")
    plans = [bridge.plan(Context(BOS, text, ())) for text in TEXTS]
    nodes = [set(bridge.sets(plan, candidates).nodes.tolist()) for plan in plans]
    assert sum(len(some) > 1 for some in nodes) >= 3


def test_fast_events_never_sum_above_one(
    gpt: Vocabulary, digits: Vocabulary, token_map: TokenMap
) -> None:
    """All upstream tokens that some pair token reaches, and END, in units of the context."""
    bridge = FastBridge(token_map, frozenset({1}), floor=0.0)
    model = worlds.hash_model("any", digits)
    candidates = list(range(len(gpt.tokens)))
    for context in worlds.contexts(gpt, 12, BOS):
        plan = bridge.plan(context)
        sets = bridge.sets(plan, candidates)
        reading = bridge.reading(plan, sets, worlds.evaluate(model, plan, sets))
        total = np.exp(reading.scores[~(reading.multi | reading.unscored)]).sum()
        assert 0 < total <= 1 + 1e-12


# --- tiny worlds: masses of byte prefixes, by brute force and by heads and recursion


def tiny_oracles(count: int) -> Iterator[tuple[Oracle, bytes, float]]:
    """(oracle, text, how much of a non-canonical token's chance its model leaves it)."""
    for seed in range(count):
        separator = tiny.SEPARATOR if seed % 2 else b""
        alphabet = (b"abc" if seed % 3 == 0 else b"ab") + separator
        pair = tiny.vocabulary(seed, alphabet, 2 + seed % 5, separator)
        rng = np.random.default_rng(seed)
        text = bytes(rng.choice(list(alphabet), rng.integers(0, 5)).tolist())
        for factor in (1.0, 0.1, 0.001):
            yield Oracle(tiny.model(seed, pair, factor), pair, pair, pair.end), text, factor


def ahead(oracle: Oracle, seed: int) -> list[bytes]:
    """What may come next: tokens, and tokens one after the other."""
    tokens = [token for token in oracle.pair.tokens if token]
    rng = np.random.default_rng(seed)
    return [tokens[i] + tokens[j] for i, j in rng.integers(0, len(tokens), (3, 2))] + tokens[-2:]


def test_heads_and_recursion_are_the_brute_force_mass() -> None:
    checked = 0
    for n, (oracle, text, _) in enumerate(tiny_oracles(24)):
        mass = oracle.prefix_mass(BOS, text, canonical=True)
        assert oracle.context_mass_of(BOS, text, True) == pytest.approx(mass, abs=1e-12)
        for more in ahead(oracle, n):
            low, high = oracle.prefix_bounds(BOS, text, more, canonical=True)
            assert (
                low
                == high
                == pytest.approx(oracle.prefix_mass(BOS, text + more, canonical=True), abs=1e-12)
            )
            checked += 1
    assert checked >= 300


def test_canonical_readings_only_are_between_the_two_masses() -> None:
    """The bridge reads the text canonically, and what comes next in any way."""
    for n, (oracle, text, _) in enumerate(tiny_oracles(24)):
        for more in ahead(oracle, n):
            hybrid, _ = oracle.prefix_bounds(BOS, text, more)
            assert oracle.prefix_mass(BOS, text + more, canonical=True) <= hybrid + 1e-12
            assert hybrid <= oracle.prefix_mass(BOS, text + more) + 1e-12


def test_pruned_mass_bounds_the_error() -> None:
    checked = pruned = 0
    for n, (oracle, text, _) in enumerate(tiny_oracles(24)):
        for more in ahead(oracle, n):
            exact, _ = oracle.prefix_bounds(BOS, text, more)
            for epsilon in (0.1, 0.01, 0.001):
                low, high = oracle.prefix_bounds(BOS, text, more, epsilon)
                assert low <= exact + 1e-12
                assert exact <= high + 1e-12
                checked += 1
                pruned += high > low
    assert checked >= 900
    assert pruned >= 100


def test_the_chain_rule_holds_in_tiny_worlds() -> None:
    """Over every way to spell; the canonical ones lose mass."""
    for oracle, text, _ in tiny_oracles(24):
        bytes_ = {token for token in oracle.pair.tokens if len(token) == 1}
        going_on = sum(oracle.prefix_mass(BOS, text + byte) for byte in bytes_)
        spelt = [path for path in oracle._covers(text) if oracle.pair.decode(path) == text]
        ends = [oracle.model(BOS + path)[0] for path in spelt]
        logs = [oracle.log_path(BOS, path) for path in spelt]
        ending = sum(np.exp(log) * end for log, end in zip(logs, ends, strict=True))
        assert oracle.prefix_mass(BOS, text) == pytest.approx(going_on + ending, abs=1e-12)


def test_samples_agree_with_the_mass() -> None:
    """200,000 texts drawn from the model; z is the number of standard errors off."""
    oracle = next(one for one, _, factor in tiny_oracles(2) if factor == 0.1)
    texts = draw_texts(oracle, 200_000, length=4)
    strings = [bytes(s) for n in (1, 2, 3) for s in product(b"abc", repeat=n)]
    masses = {s: oracle.prefix_mass(BOS, s) for s in strings}
    prefixes = [s for s in strings if 0.01 < masses[s] < 0.99][-5:]
    assert len(prefixes) == 5
    for prefix in prefixes:
        mass = masses[prefix]
        share = np.mean([text.startswith(prefix) for text in texts])
        z = (share - mass) / np.sqrt(mass * (1 - mass) / len(texts))
        assert abs(z) < 3


def draw_texts(oracle: Oracle, count: int, length: int) -> list[bytes]:
    """Texts drawn token by token, until they end or have so many bytes."""
    rng, done = np.random.default_rng(3), []
    groups: dict[tuple[tuple[int, ...], bytes], int] = {(BOS, b""): count}
    while groups:
        grown: dict[tuple[tuple[int, ...], bytes], int] = {}
        for (path, text), size in groups.items():
            for t, drawn in enumerate(rng.multinomial(size, oracle.model(path)).tolist()):
                more = text + oracle.pair.tokens[t]
                if t in oracle.ends or len(more) >= length:
                    done += [more] * drawn
                elif drawn:
                    key = (*path, t)[-2:], more
                    grown[key] = grown.get(key, 0) + drawn
        groups = grown
    return done


def test_events_by_brute_force_make_up_the_boundary() -> None:
    """Tokenizers with a pre-tokenizer: all events together are P(a boundary at the text's end)."""
    for seed in range(1, 9, 2):
        upstream = tiny.vocabulary(seed, b"ab.", 4, b".", 3)
        pair = tiny.vocabulary(seed + 1000, b"ab.", 3, b".", 3)
        oracle = Oracle(tiny.model(seed, pair, 0.1), upstream, pair, pair.end)
        for text in (b"a", b"b.", b"ab"):
            every = sum(oracle.event_mass(BOS, text, c, 4) for c in range(1, len(upstream.tokens)))
            boundary = oracle.boundary_mass(BOS, text, 4)
            assert every == pytest.approx(boundary, abs=1e-12)


def test_one_tokenizer_and_a_canonical_model_make_events_tokens() -> None:
    """event = p(path of the text) · p(c | path), where nothing else can spell it."""
    checked = 0
    for seed in range(1, 9, 2):
        pair = tiny.vocabulary(seed, b"ab.", 3, b".", 3)
        model = worlds.canonical_model(f"tiny {seed}", pair, 1, b"ab.", 7)
        oracle = Oracle(model, pair, pair, pair.end)
        for text in (b"a.", b"ab", b"."):
            path = pair.encode(text)
            weight = np.exp(oracle.log_path(BOS, path))
            for c in range(1, len(pair.tokens)):
                event = oracle.event_mass(BOS, text, c, 7)
                assert event == pytest.approx(weight * model(BOS + path)[c], abs=1e-9)
                checked += 1
    assert checked >= 60
