"""Brute force: the oracle against the laws of probability, the fast rule against the oracle."""

from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer_maps import worlds
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
    """Where pair tokens are unions of upstream tokens, the fast rule is the event itself."""
    upstream, pair = oracles[0].upstream, oracles[0].pair
    token_map = TokenMap.build(upstream, pair)
    bridge = FastBridge(token_map, pair.end, Clamp(np.inf, np.inf), floor=0.0)
    plan = bridge.plan(Context(BOS, text, ()))
    candidates = spelt_with(upstream, b"ab ")
    found = worlds.offsets(bridge, plan, candidates, *(oracle.model for oracle in oracles))
    checked = 0
    for c, delta in zip(candidates, found.delta, strict=True):
        events = [oracle.event_mass(BOS, text, c, LONGEST) for oracle in oracles]
        if min(events) > 0:
            checked += 1
            logs = [
                np.log(event / oracle.prefix_mass(BOS, text))
                for event, oracle in zip(events, oracles, strict=True)
            ]
            assert delta == pytest.approx(logs[0] - logs[1], abs=1e-10)
    assert checked >= 2
    assert not found.multi.any()


def test_heads_matter_in_the_nested_world(oracles: list[Oracle]) -> None:
    """The check above would not notice missing heads if no text had any."""
    bridge = FastBridge(TokenMap.build(oracles[0].upstream, oracles[0].pair), frozenset({0}))
    heads = [len(bridge.plan(Context(BOS, text, ())).heads) for text in TEXTS]
    assert sum(count > 1 for count in heads) >= 4
    candidates = spelt_with(oracles[0].upstream, b"ab ")
    plan = bridge.plan(Context(BOS, b"ab", ()))
    nodes = bridge.sets(plan, candidates).nodes
    assert len(set(nodes.tolist())) > 1


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
