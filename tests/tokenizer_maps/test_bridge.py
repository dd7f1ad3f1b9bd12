"""Bridges against the slow twin, the identity path, brute force and other cuts of the trunk."""

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tests.tokenizer_maps import worlds
from tokenizer_maps import (
    Bridge,
    Clamp,
    Context,
    ExactBridge,
    FastBridge,
    IdentityBridge,
    Masses,
    Offsets,
    Plan,
    Reading,
    TokenMap,
    Tree,
    Vocabulary,
    VocabularyError,
    load_vocabulary,
    make_bridge,
)
from tokenizer_maps.exact import ALWAYS
from tokenizer_maps.reference import Model, Oracle, fast_offsets

OPEN = Clamp(np.inf, np.inf)
ENDS = frozenset({1})
BOS = (0,)


def run(
    bridge: Bridge, context: Context, candidates: list[int], models: tuple[Model, Model]
) -> Offsets:
    """All three steps, with a pair of fake models."""
    return finish(bridge, bridge.plan(context), candidates, models)


def finish(
    bridge: Bridge, plan: Plan, candidates: list[int], models: tuple[Model, Model]
) -> Offsets:
    return worlds.offsets(bridge, plan, candidates, *models)


def pick(upstream: Vocabulary, context: Context, seed: int) -> list[int]:
    """A dozen candidates: likely continuations, nested ones, random ones, an END, nothing."""
    rng = np.random.default_rng(seed)
    some = rng.integers(0, len(upstream.tokens), 6).tolist()
    nested = [upstream.id_of(t) for t in (b" t", b" the", b" they", b"1", b"12", b"\n", b"e")]
    return [*some, *(i for i in nested if i is not None), *upstream.end, -1]


@pytest.fixture(scope="session")
def models(digits: Vocabulary) -> tuple[Model, Model]:
    return worlds.hash_model("expert", digits), worlds.hash_model("antiexpert", digits)


@pytest.fixture(scope="session")
def bridge(token_map: TokenMap) -> FastBridge:
    return FastBridge(token_map, ENDS, OPEN)


def test_the_fast_rule_against_its_plain_twin(
    bridge: FastBridge, gpt: Vocabulary, digits: Vocabulary, models: tuple[Model, Model]
) -> None:
    oracles = [Oracle(model, gpt, digits, ENDS) for model in models]
    headed = multi = 0
    for n, context in enumerate(worlds.contexts(gpt, 40, BOS)):
        candidates = pick(gpt, context, n)
        found = run(bridge, context, candidates, models)
        expected = fast_offsets(*oracles, context, candidates, OPEN)
        np.testing.assert_allclose(found.delta, expected.delta, rtol=0, atol=1e-12)
        np.testing.assert_array_equal(found.unscored, expected.unscored)
        np.testing.assert_array_equal(found.multi, expected.multi)
        headed += len(bridge.plan(context).heads) > 1
        multi += found.multi.sum()
    assert headed > 20
    assert multi > 20


# Some pair token goes on where these end, and the upstream has a boundary there.
SPANNED = [b"others:", b"(values)", b"def f():", b"The end.", b"it's", b"x\n", b"..."]
TEXTS = [
    *SPANNED,
    b"quic",  # inside a pair token
    b"there were",
    b"It's 123",
    b"in 1999 or ",
    b"a  ",
    b"x\n\n\n",
    "漢".encode()[:2],  # inside a character
    "hi \N{SLIGHTLY SMILING FACE}".encode()[:-1],
    b"they'",
    b"    " * 20,  # longer than the look-back
    b"\xff\xfe not text \xff",
    b" " + b"the " * 40,
    b"the",
]


@pytest.mark.parametrize("text", TEXTS)
@pytest.mark.parametrize("fixed", [BOS, ()])
def test_hard_places_against_the_twin(
    bridge: FastBridge,
    gpt: Vocabulary,
    digits: Vocabulary,
    models: tuple[Model, Model],
    text: bytes,
    fixed: tuple[int, ...],
) -> None:
    oracles = [Oracle(model, gpt, digits, ENDS) for model in models]
    context = Context(fixed, text, ())
    candidates = pick(gpt, context, len(text))
    found = run(bridge, context, candidates, models)
    expected = fast_offsets(*oracles, context, candidates, OPEN)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=0, atol=1e-12)


def test_tokens_the_pair_would_not_write_do_not_count(
    bridge: FastBridge, gpt: Vocabulary, digits: Vocabulary
) -> None:
    """Of all tokens over the end of the text for which the upstream has a boundary there."""
    counted = left_out = 0
    everything = [*range(len(gpt.tokens))]
    for text in (*SPANNED, b"they", b" whe", b"    ", b"a\n"):
        plan = bridge.plan(Context(BOS, text, ()))
        spanning = bridge._spanning(plan, np.array(everything))
        found = {(head.rest, t) for some in spanning.values() for head, ids in some for t in ids}
        for head in plan.heads:
            for t in range(2, len(digits.tokens)):
                token = digits.tokens[t]
                if not head.rest or not token.startswith(head.rest) or token == head.rest:
                    continue
                if bridge.found_at(plan.tail + token[len(head.rest) :], len(plan.tail)) >= 0:
                    whole = text[: len(text) - len(head.rest)] + token
                    written = digits.encode(whole)[-1] == t
                    assert written == ((head.rest, t) in found)
                    counted, left_out = counted + written, left_out + (not written)
    assert counted >= 10
    assert left_out >= 10


def test_inside_a_token_longer_than_the_look_back(
    bridge: FastBridge, gpt: Vocabulary, digits: Vocabulary, models: tuple[Model, Model]
) -> None:
    """The pair has 100 dashes and a line end in one token, the upstream has read 36 + 32 + 32."""
    oracles = [Oracle(model, gpt, digits, ENDS) for model in models]
    dashes, line = gpt.id_of(b"-" * 32), gpt.id_of(b"\n")
    assert dashes is not None
    assert line is not None
    assert digits.id_of(b"-" * 100 + b"\n") is not None
    context = Context(BOS, b"a\n" + b"-" * 36, (dashes, dashes))
    found = run(bridge, context, [line], models)
    expected = fast_offsets(*oracles, context, [line], OPEN)
    np.testing.assert_allclose(found.delta, expected.delta, rtol=0, atol=1e-12)


def test_offsets_do_not_depend_on_how_the_text_was_generated(
    bridge: FastBridge, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    ids = gpt.encode(worlds.PROSE[:60].encode())
    candidates = pick(gpt, Context((), b"", ()), 0)
    results = [
        run(bridge, Context(BOS, gpt.decode(ids[:n]), ids[n:]), candidates, models).delta
        for n in (0, 5, len(ids))
    ]
    for other in results[1:]:
        np.testing.assert_array_equal(other, results[0])


def cut_earlier(plan: Plan, by: int) -> Plan:
    """The same plan with the last ``by`` trunk tokens moved into the tree."""
    for _ in range(by):
        tree = plan.tree
        parents = (-1, *(parent + 1 for parent in tree.parents))
        moved = Tree(tree.trunk[:-1], (tree.trunk[-1], *tree.tokens), parents)
        heads = tuple(
            replace(head, node=head.node + 1, path_nodes=(0, *(n + 1 for n in head.path_nodes)))
            for head in plan.heads
        )
        plan = replace(plan, tree=moved, heads=heads)
    return plan


@pytest.mark.parametrize("by", [1, 2, 5])
def test_the_trunk_may_be_cut_elsewhere(
    bridge: FastBridge, gpt: Vocabulary, models: tuple[Model, Model], by: int
) -> None:
    cut = 0
    for n, context in enumerate(worlds.contexts(gpt, 40, BOS)):
        plan = bridge.plan(context)
        if len(plan.tree.trunk) <= by:
            continue
        cut += 1
        candidates = pick(gpt, context, n)
        here = finish(bridge, plan, candidates, models)
        there = finish(bridge, cut_earlier(plan, by), candidates, models)
        np.testing.assert_allclose(there.delta, here.delta, rtol=0, atol=1e-12)
    assert cut > 15


def test_trees_are_well_formed(bridge: FastBridge, gpt: Vocabulary, digits: Vocabulary) -> None:
    for context in worlds.contexts(gpt, 40, BOS):
        plan, text = bridge.plan(context), context.prompt + gpt.decode(context.generated)
        tree = plan.tree
        assert tree.trunk
        assert all(parent < n for n, parent in enumerate(tree.parents))
        assert len({*zip(tree.parents, tree.tokens, strict=True)}) == len(tree.tokens)
        assert plan.heads[0].rest == b""
        assert text.endswith(plan.tail)
        paths = set()
        for head in plan.heads:
            path = tree.trunk + tuple(tree.tokens[n] for n in head.path_nodes)
            assert digits.decode(path) + head.rest == text
            paths.add((head.rest, path))
            assert head.node == (head.path_nodes[-1] if head.path_nodes else -1)
            assert plan.tail.endswith(head.rest)
        canonical = {rest: BOS + digits.encode(text[: len(text) - len(rest)]) for rest, _ in paths}
        assert set(canonical.items()) <= paths
        assert len(paths) == len(plan.heads)


def test_the_upstream_is_read_from_one_of_its_own_boundaries(
    bridge: FastBridge, gpt: Vocabulary
) -> None:
    text = (worlds.PROSE * 3).encode()
    ids = gpt.encode(text)
    boundaries = {len(gpt.decode(ids[:n])) for n in range(len(ids) + 1)}
    for n in range(60, len(ids), 9):
        prompt = gpt.decode(ids[: n // 2])
        if gpt.encode(prompt) != ids[: n // 2]:
            continue
        plan = bridge.plan(Context(BOS, prompt, ids[n // 2 : n]))
        start = len(gpt.decode(ids[:n])) - len(plan.tail)
        assert start in boundaries
        assert 64 <= len(plan.tail) < 64 + 30


def test_without_a_start_token_all_readings_begin_alike(
    bridge: FastBridge, digits: Vocabulary
) -> None:
    """The probability of a first token is unknown, so other first tokens have no weight."""
    dropped = 0
    for token in digits.tokens[2:]:
        plan = bridge.plan(Context((), token, ()))
        assert plan.tree.trunk[0] == digits.encode(token)[0]
        dropped += len(bridge.plan(Context(BOS, token, ())).heads) - len(plan.heads)
    assert dropped > 100


@pytest.mark.parametrize("kind", [FastBridge, IdentityBridge])
def test_nothing_to_read(kind: type, token_map: TokenMap, digits: Vocabulary) -> None:
    bridge = FastBridge(token_map, ENDS) if kind is FastBridge else IdentityBridge(digits)
    with pytest.raises(ValueError, match="nothing to read"):
        bridge.plan(Context((), b"", ()))
    assert bridge.plan(Context(BOS, b"", ())).tree == Tree(BOS, (), ())


# --- one tokenizer on both sides


def test_identity_is_the_difference_of_log_probabilities(
    digits: Vocabulary, models: tuple[Model, Model]
) -> None:
    bridge = IdentityBridge(digits)
    context = Context(BOS, b"It's 12", digits.encode(b" they"))
    candidates = [-1, *range(len(digits.tokens)), len(digits.tokens)]
    found = run(bridge, context, candidates, models)
    path = BOS + digits.encode(b"It's 12") + digits.encode(b" they")
    expected = np.log(models[0](path)) - np.log(models[1](path))
    np.testing.assert_array_equal(found.delta[1:-1], expected)
    assert found.unscored.tolist() == [True, *[False] * len(digits.tokens), True]
    assert found.delta[[0, -1]].tolist() == [0, 0]
    assert not found.multi.any()
    assert not found.clamped.any()
    assert np.abs(found.delta).max() > 10 * Clamp().end / 4  # ENDs and all, unclamped


def test_identity_where_models_say_never(digits: Vocabulary) -> None:
    bridge = IdentityBridge(digits)
    plan = bridge.plan(Context(BOS, b"", ()))
    never, some = np.array([-np.inf, -np.inf, -1.0]), np.array([-np.inf, -2.0, -np.inf])
    nothing = np.zeros(0)
    masses = Masses(never, nothing), Masses(some, nothing)
    found = worlds.offsets(bridge, plan, [5, 6, 7], *masses)
    assert found.delta.tolist() == [0.0, -np.inf, np.inf]


@pytest.mark.parametrize("kind", [FastBridge, ExactBridge])
def test_one_tokenizer_through_a_bridge_is_the_identity(gpt: Vocabulary, kind: type) -> None:
    """η = 0 and no clamps: the offsets themselves, for models that write canonical paths."""
    models = [worlds.canonical_model(name, gpt, 1, b" ewrth.,'12\n") for name in ("+", "-")]
    more = {"above": ALWAYS} if kind is ExactBridge else {}
    through = kind(TokenMap.build(gpt, gpt), gpt.end, OPEN, floor=0.0, **more)
    checked = 0
    for text in (" there were 12", "we're the", "12 ", "the.\n", "er", " t", " were,  the", "er  "):
        candidates = np.flatnonzero(models[0]((1, *gpt.encode(text.encode())))).tolist()
        context = Context((1,), text.encode(), ())
        found = run(through, context, candidates, (models[0], models[1]))
        expected = run(IdentityBridge(gpt), context, candidates, (models[0], models[1]))
        np.testing.assert_allclose(found.delta, expected.delta, rtol=0, atol=1e-9)
        assert not found.multi.any()
        checked += len(candidates)
    assert checked > 100


# --- ENDs, clamps, flags


def test_ends_pool_the_pairs_own(
    token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary, models: tuple[Model, Model]
) -> None:
    (end,) = gpt.end
    context = Context(BOS, b"The end.\n", ())
    ends = frozenset({1, 5})
    found = run(FastBridge(token_map, ends, OPEN, 0.0), context, [end], models)
    path = BOS + digits.encode(b"The end.\n")
    mass = [m(path)[1] + m(path)[5] for m in models]
    assert found.delta[0] == pytest.approx(np.log(mass[0] / mass[1]))
    assert not found.unscored.any()
    assert run(FastBridge(token_map, frozenset()), context, [end], models).unscored.all()


def test_an_end_that_is_text_is_an_end(
    token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    line, special = gpt.id_of(b"\n"), gpt.specials["<|end|>"]
    assert line is not None
    ended = replace(token_map, upstream=replace(gpt, end=frozenset({line, special})))
    found = run(FastBridge(ended, ENDS), Context(BOS, b"a", ()), [line, special], models)
    assert found.delta[0] == found.delta[1] != 0
    assert not found.multi.any()


def test_clamps(token_map: TokenMap, gpt: Vocabulary, models: tuple[Model, Model]) -> None:
    (end,) = gpt.end
    context = Context(BOS, b"The end.\n", ())
    candidates = [end, *range(100, 160)]
    free = run(FastBridge(token_map, ENDS, OPEN), context, candidates, models)
    held = run(FastBridge(token_map, ENDS, Clamp(1.0, 0.25)), context, candidates, models)
    limit = np.array([0.25, *[1.0] * 60])
    np.testing.assert_array_equal(held.delta, np.clip(free.delta, -limit, limit))
    np.testing.assert_array_equal(held.clamped, np.abs(free.delta) > limit)
    assert 5 < held.clamped.sum() < 60
    assert not free.clamped.any()


def test_what_cannot_be_scored(
    bridge: FastBridge, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    the = gpt.id_of(b" the")
    candidates = [-1, gpt.specials["<|sys|>"], len(gpt.tokens), the, -5, 10**9]
    found = run(bridge, Context(BOS, b"all", ()), candidates, models)
    assert found.unscored.tolist() == [True, True, True, False, True, True]
    assert (found.delta != 0).tolist() == [False, False, False, True, False, False]
    for text in (b"all", b""):
        assert run(bridge, Context(BOS, text, ()), [], models).delta.shape == (0,)


def test_numbers_the_pair_splits_share_their_first_digit(
    bridge: FastBridge, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    numbers = [t for t in gpt.tokens if t[:1] == b"1" and len(t) > 1 and t.isdigit()]
    assert len(numbers) > 1
    candidates = [gpt.id_of(t) for t in (b"1", *numbers)]
    found = run(bridge, Context(BOS, b"year:\n", ()), candidates, models)
    assert found.multi.tolist() == [False, *[True] * len(numbers)]
    np.testing.assert_allclose(found.delta, found.delta[0], rtol=0, atol=1e-12)


def test_a_model_that_rules_out_the_text_keeps_its_end_head(
    bridge: FastBridge, gpt: Vocabulary
) -> None:
    context = Context(BOS, b"there wer", ())
    plan = bridge.plan(context)
    assert plan.heads[0].path_nodes
    sets = bridge.sets(plan, [gpt.id_of(b"e"), gpt.id_of(b" the")])
    masses = Masses(np.full(len(sets.nodes), -1.0), np.full(len(plan.tree.tokens), -np.inf))
    found = worlds.offsets(bridge, plan, [gpt.id_of(b"e"), gpt.id_of(b" the")], masses, masses)
    assert found.delta.tolist() == [0.0, 0.0]


def test_the_floor_holds_where_one_model_says_never(token_map: TokenMap, gpt: Vocabulary) -> None:
    bridge = FastBridge(token_map, ENDS, OPEN)
    plan = bridge.plan(Context(BOS, b"", ()))
    sets = bridge.sets(plan, [gpt.id_of(b" the")])
    assert len(sets.nodes) == 1
    never, sure = Masses(np.array([-np.inf]), np.zeros(0)), Masses(np.zeros(1), np.zeros(0))
    found = worlds.offsets(bridge, plan, [gpt.id_of(b" the")], never, sure)
    assert found.delta[0] == pytest.approx(np.log(1e-6), abs=1e-5)


def test_renderings_that_differ_have_their_own_plans(
    bridge: FastBridge, gpt: Vocabulary, digits: Vocabulary
) -> None:
    """One reading a model: the same texts give what the shared plan gives."""
    models = worlds.hash_model("expert", digits), worlds.hash_model("antiexpert", digits)
    generated = gpt.encode(b" there")
    candidates = [gpt.id_of(b" the"), gpt.id_of(b"e"), 0, -1]
    contexts = Context(BOS, b"It's 12", generated), Context(BOS, b"Quoth: It's 12", generated)
    readings = []
    for context, model in zip(contexts, models, strict=True):
        plan = bridge.plan(context)
        sets = bridge.sets(plan, candidates)
        readings.append(bridge.reading(plan, sets, worlds.evaluate(model, plan, sets)))
    found = bridge.offsets(*readings)
    expected = readings[0].scores - readings[1].scores
    np.testing.assert_allclose(found.delta[:2], np.clip(expected[:2], -10, 10), atol=1e-12)
    assert found.unscored.tolist() == [False, False, False, True]


def test_an_event_only_one_rendering_resolves_is_unscored(bridge: FastBridge) -> None:
    no, yes = np.array([False]), np.array([True])
    fine = Reading(np.array([-1.0]), end=no, multi=no, unscored=no, capped=no)
    coarse = Reading(np.array([-3.0]), end=no, multi=yes, unscored=no, capped=no)
    assert bridge.offsets(fine, fine).unscored.tolist() == [False]
    assert bridge.offsets(fine, coarse).unscored.tolist() == [True]
    assert bridge.offsets(coarse, fine).delta.tolist() == [0.0]


# --- the choice


def test_the_bridge_is_chosen_by_fingerprint(
    tmp_path: Path, gpt: Vocabulary, digits: Vocabulary
) -> None:
    again = load_vocabulary(worlds.write(tmp_path / "again", worlds.gpt2_style(), "<|end|>"))
    ends, clamp = frozenset({0}), Clamp()
    assert isinstance(make_bridge("auto", gpt, again, ends, tmp_path, clamp), IdentityBridge)
    assert isinstance(make_bridge("identity", gpt, again, ends, tmp_path, clamp), IdentityBridge)
    assert isinstance(make_bridge("fast", gpt, again, ends, tmp_path, clamp), FastBridge)
    assert isinstance(make_bridge("auto", gpt, digits, ends, tmp_path, clamp), ExactBridge)
    assert type(make_bridge("fast", gpt, digits, ends, tmp_path, clamp)) is FastBridge
    exact = make_bridge("exact", gpt, digits, ends, tmp_path, clamp)
    assert isinstance(exact, ExactBridge)
    assert exact.above == ALWAYS
    assert len(list(tmp_path.glob("*.tkmap"))) == 2
    with pytest.raises(VocabularyError, match="use fast"):
        make_bridge("identity", gpt, digits, ends, tmp_path, clamp)


@pytest.mark.parametrize(("whole", "torn"), [(300, False), (160, False), (140, True), (0, True)])
def test_a_pair_without_the_characters_is_warned_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, whole: int, torn: bool
) -> None:
    """300 upstream tokens are one Chinese character each; the pair has ``whole`` of them."""
    upstream, pair = worlds.characters(300), worlds.characters(whole)
    make_bridge("fast", upstream, pair, frozenset(), tmp_path, Clamp())
    assert len(caplog.messages) == torn
    assert not torn or f"CJK ({1 - whole / 300:.0%})" in caplog.text


def test_whole_vocabularies_are_read_as_single_candidates_are(
    bridge: FastBridge, gpt: Vocabulary, models: tuple[Model, Model]
) -> None:
    """Many candidates are found token by token, few of them candidate by candidate."""
    everything = [*range(len(gpt.tokens)), -1, 300, 300]
    spanned = 0
    spanning = [Context(BOS, text, ()) for text in SPANNED]
    for context in worlds.contexts(gpt, 15, BOS) + spanning:
        plan = bridge.plan(context)
        whole = finish(bridge, plan, everything, models)
        for start in range(0, len(everything), 200):
            few = finish(bridge, plan, everything[start : start + 200], models)
            part = slice(start, start + 200)
            # Z holds what spans the end of the text for one of the candidates.
            shift = (whole.delta[part] - few.delta)[~few.unscored]
            np.testing.assert_allclose(shift, shift[0], rtol=0, atol=1e-12)
            np.testing.assert_array_equal(whole.multi[part], few.multi)
            np.testing.assert_array_equal(whole.unscored[part], few.unscored)
        sets, ends = bridge.sets(plan, everything), {h.node for h in plan.heads if not h.rest}
        parts = sets.owners < len(everything)
        spanned += sum(node not in ends for node in sets.nodes[sets.sums[parts]].tolist())
    assert spanned >= len(SPANNED)
