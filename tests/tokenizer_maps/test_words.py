"""The bridge for an upstream whose vocabulary nobody knows."""

from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer_maps import worlds
from tokenizer_maps import Clamp, Context, FastBridge, TokenMap, Vocabulary, WordBridge
from tokenizer_maps.reference import Oracle
from tokenizer_maps.words import END, SpeltBridge, ends_word

BOS = (0,)
OPEN = Clamp(np.inf, np.inf)


@pytest.fixture(scope="module")
def bridge(digits: Vocabulary) -> WordBridge:
    fast = FastBridge(TokenMap.build(digits, digits), frozenset({1}), OPEN, floor=0.0)
    return WordBridge(fast)


@pytest.mark.parametrize(
    ("token", "at", "expected"),
    [
        (b" the", 4, True),
        (b" they", 4, False),
        (b"the,", 3, True),
        (b"a1", 1, True),
        (b"12", 1, False),
        (b"\n\n", 1, False),
        (b"x\n", 1, True),
        ("漢字".encode(), 3, False),
        ("漢,".encode(), 3, True),
        ("漢".encode(), 1, False),  # inside a character
        ("漢,".encode(), 2, False),
        (b"ab\xe6", 2, False),  # half a character goes on with the word
    ],
)
def test_where_words_end(token: bytes, at: int, expected: bool) -> None:
    assert ends_word(token, at) == expected


@pytest.mark.parametrize("text", [b"all the", b"", b"x  ", b"It's 12", "漢".encode()[:2]])
def test_candidates_by_their_bytes(bridge: WordBridge, digits: Vocabulary, text: bytes) -> None:
    """Against the sum over all pair tokens that spell the rest, the candidate and a word's end."""
    model = worlds.hash_model("any", digits)
    oracle, context = Oracle(model, digits, digits, frozenset({1})), Context(BOS, text, ())
    candidates = [b" the", b"t", b"\n", b"1", b" t", b"'", END, None, b"qzx"]
    plan = bridge.plan(context)
    sets = bridge.sets(plan, candidates)
    found = bridge.reading(plan, sets, worlds.evaluate(model, plan, sets))
    assert found.unscored.tolist() == [c is None for c in candidates]
    assert found.multi[-1]
    heads = oracle._heads(context)
    z = sum(weight for weight, rest, _ in heads if not rest) + sum(
        weight * model(path)[t]
        for weight, rest, path in heads
        for t in oracle._beginning_with(rest)
        if rest and any(c and spells(digits.tokens[t], rest + c) for c in candidates)
    )
    for c, score, multi in zip(candidates[:6], found.scores, found.multi, strict=False):
        assert c is not None
        mass = sum(
            weight * model(path)[t]
            for weight, rest, path in heads
            for t in oracle._beginning_with(rest)
            if spells(digits.tokens[t], rest + c)
        )
        assert multi == (mass == 0)
        assert multi or np.exp(score) * z == pytest.approx(mass, rel=1e-9)
    end = model(BOS + digits.encode(text))[1]
    assert np.exp(found.scores[6]) * z == pytest.approx(end, rel=1e-9)


def spells(token: bytes, text: bytes) -> bool:
    return token.startswith(text) and ends_word(token, len(text))


def test_all_three_steps(tmp_path: Path, digits: Vocabulary) -> None:
    bridge = WordBridge.open(digits, frozenset({1}), tmp_path, Clamp(1.0, 0.5))
    plan = bridge.plan(Context(BOS, b"the", ()))
    sets = bridge.sets(plan, [b" the", None, END])
    masses = [
        worlds.evaluate(worlds.hash_model(name, digits), plan, sets) for name in ("one", "two")
    ]
    assert bridge.deeper(plan, sets, masses) is None
    found = bridge.offsets(*(bridge.reading(plan, sets, one) for one in masses))
    assert found.unscored.tolist() == [False, True, False]
    assert np.abs(found.delta).max() <= 1.0
    assert abs(found.delta[2]) <= 0.5


def test_ids_of_ones_own_stand_for_their_bytes(bridge: WordBridge, digits: Vocabulary) -> None:
    """What was generated is text of the prompt, whichever tokens it came in."""
    model = worlds.hash_model("any", digits)
    spelt = SpeltBridge(bridge, {9: b" the", 10**18: b"", 7: b"al", 8: b"l"})
    plan = spelt.plan(Context(BOS, b"", (7, 8)))
    assert plan == bridge.plan(Context(BOS, b"all", ()))
    sets = spelt.sets(plan, [9, 10**18, -1, 7])
    masses = worlds.evaluate(model, plan, sets)
    twin = bridge.sets(plan, [b" the", END, None, b"al"])
    found, expected = spelt.reading(plan, sets, masses), bridge.reading(plan, twin, masses)
    assert found.scores.tolist() == expected.scores.tolist()
    assert found.end.tolist() == [False, True, False, False]
    assert found.unscored.tolist() == [False, False, True, False]
    with pytest.raises(RuntimeError, match="cannot be surveyed"):
        spelt.surveyed(plan)
