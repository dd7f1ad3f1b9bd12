"""The whole vocabulary at once against the same bridge asked token by token."""

from collections.abc import Iterator
from dataclasses import dataclass, replace

import numpy as np
import pytest

from tests.tokenizer_maps import tiny, worlds
from tokenizer_maps import (
    Clamp,
    Context,
    FastBridge,
    IdentityBridge,
    Plan,
    TokenMap,
    Vocabulary,
)
from tokenizer_maps.reference import Model
from tokenizer_maps.steps import Floats, Reading, Rows, Survey
from tokenizer_maps.survey import LONGER

OPEN = Clamp(np.inf, np.inf)
ENDS = frozenset({1})
BOS = (0,)


def path_to(plan: Plan, node: int) -> tuple[int, ...]:
    """The ids from the trunk's beginning to a node."""
    branch: list[int] = []
    while node >= 0:
        branch.append(plan.tree.tokens[node])
        node = plan.tree.parents[node]
    return plan.tree.trunk + tuple(reversed(branch))


def rows_of(bridge: FastBridge | IdentityBridge, plan: Plan, model: Model) -> Rows:
    """What a pair would answer."""
    with np.errstate(divide="ignore"):
        whole = np.log([model(path_to(plan, node)) for node in bridge.surveyed(plan)])
        paths = [path_to(plan, node) for node in range(len(plan.tree.tokens))]
        return Rows(whole, np.array([np.log(model(path[:-1])[path[-1]]) for path in paths]))


def surveyed(bridge: FastBridge | IdentityBridge, plan: Plan, model: Model) -> Survey:
    return bridge.survey(plan, rows_of(bridge, plan, model))


def read(bridge: FastBridge, plan: Plan, ids: list[int], model: Model) -> Reading:
    """The bridge's own answer for some candidates."""
    (found,) = worlds.readings(bridge, plan, ids, [model])
    return found


def common(left: Floats, right: Floats) -> float:
    """The constant between two arrays; they are −inf at the same places."""
    np.testing.assert_array_equal(np.isneginf(left), np.isneginf(right))
    known = np.isfinite(left)
    shift = left[known] - right[known]
    np.testing.assert_allclose(shift, shift[0], rtol=0, atol=1e-9)
    return float(shift[0])


@dataclass(frozen=True, eq=False)
class Place:
    """A bridge, a place in a text, and two models."""

    bridge: FastBridge
    plan: Plan
    models: tuple[Model, Model]

    @property
    def ids(self) -> list[int]:
        return list(range(len(self.bridge.map.upstream.tokens)))


TEXTS = [b"quic", b"there were", b"in 1999 or ", b"a  ", b"x\n\n\n", "漢".encode()[:2], b"they'"]


@pytest.fixture(scope="module")
def trained(token_map: TokenMap, gpt: Vocabulary, digits: Vocabulary) -> list[Place]:
    """Running text in trained vocabularies."""
    bridge = FastBridge(token_map, ENDS, OPEN)
    models = worlds.hash_model("expert", digits), worlds.hash_model("antiexpert", digits)
    contexts = [*worlds.contexts(gpt, 12, BOS), *(Context(BOS, text, ()) for text in TEXTS)]
    return [Place(bridge, bridge.plan(context), models) for context in contexts]


def tiny_places() -> Iterator[Place]:
    """Random vocabularies over two and three bytes, with and without a pre-tokenizer."""
    for seed in range(40):
        separator = tiny.SEPARATOR if seed % 2 else b""
        alphabet = (b"abc" if seed % 3 == 0 else b"ab") + separator
        upstream = tiny.vocabulary(seed, alphabet, 4 + seed % 4, separator)
        pair = tiny.vocabulary(seed + 1000, alphabet, 2 + seed % 5, separator)
        rng = np.random.default_rng(seed)
        models = tuple(tiny.model(seed + n, pair, float(rng.choice([1, 0.01]))) for n in (0, 500))
        text = bytes(rng.choice(list(alphabet), rng.integers(0, 6)).tolist())
        bridge = FastBridge(TokenMap.build(upstream, pair), pair.end, OPEN)
        yield Place(bridge, bridge.plan(Context((tiny.END,), text, ())), (models[0], models[1]))


@pytest.fixture
def thorough(monkeypatch: pytest.MonkeyPatch) -> pytest.MonkeyPatch:
    """Every token over the end of the text is looked at."""
    monkeypatch.setattr("tokenizer_maps.survey.LEAST", 0.0)
    monkeypatch.setattr("tokenizer_maps.survey.MOST", 10**9)
    return monkeypatch


def places(trained: list[Place]) -> list[Place]:
    return [*trained, *tiny_places()]


@pytest.mark.usefixtures("thorough")
def test_every_token_has_the_score_it_has_as_a_candidate(trained: list[Place]) -> None:
    """Up to Z, the mass of the text, which is common to all."""
    coarse = headed = 0
    for place in places(trained):
        for model in place.models:
            found = surveyed(place.bridge, place.plan, model)
            expected = read(place.bridge, place.plan, place.ids, model)
            scores = np.where(expected.unscored, -np.inf, expected.scores)
            common(found.scores, scores)
            # nothing was left open: only Z differs
            common(found.high, found.scores)
            common(found.low, found.scores)
            coarse += int(expected.multi.sum())
        headed += len(place.plan.heads) > 1
    assert coarse > 100
    assert headed > 20


@pytest.mark.usefixtures("thorough")
def test_offsets_are_those_of_candidates(trained: list[Place]) -> None:
    for place in places(trained):
        expert, anti = (surveyed(place.bridge, place.plan, model) for model in place.models)
        whole = place.bridge.whole(expert, anti)
        expected = worlds.offsets(place.bridge, place.plan, place.ids, *place.models)
        scored = ~expected.unscored
        shift = (whole.delta - expected.delta)[scored]
        np.testing.assert_allclose(shift, shift[0], rtol=0, atol=1e-9)
        assert (whole.delta[~scored] == 0.0).all()
        assert (whole.delta <= whole.high + 1e-12).all()
        np.testing.assert_array_equal(whole.prior, anti.prior)


@pytest.mark.parametrize(("least", "most"), [(0.05, 10**9), (0.0, 2), (0.0, 0)])
def test_what_was_not_looked_at_is_in_the_bounds(
    trained: list[Place], thorough: pytest.MonkeyPatch, least: float, most: int
) -> None:
    """Of surveys, and of offsets among any few candidates, whose Z is their own."""
    wide, rng = 0, np.random.default_rng(0)
    for place in places(trained):
        full = [surveyed(place.bridge, place.plan, model) for model in place.models]
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr("tokenizer_maps.survey.LEAST", least)
            patch.setattr("tokenizer_maps.survey.MOST", most)
            some = [surveyed(place.bridge, place.plan, model) for model in place.models]
        for fine, found in zip(full, some, strict=True):
            known = np.isfinite(fine.scores)
            assert (found.low <= found.scores)[known].all()
            assert (found.scores <= found.high)[known].all()
            assert (found.low <= fine.scores + 1e-9)[known].all()
            assert (fine.scores <= found.high + 1e-9)[known].all()
            wide += int((found.high[known] - found.low[known] > 0.1).sum())
        few = rng.choice(place.ids, min(5, len(place.ids)), replace=False).tolist()
        offsets = worlds.offsets(place.bridge, place.plan, few, *place.models)
        high = place.bridge.whole(*some).high[few]
        assert (offsets.delta <= high + 1e-9)[~offsets.unscored].all()
    assert wide > 100


def test_the_prior_is_a_distribution(trained: list[Place]) -> None:
    """Of token events: what is seen only together shares its mass, and there is no floor."""
    for place in trained:
        found = surveyed(place.bridge, place.plan, place.models[0])
        upstream = place.bridge.map.upstream
        assert 0.7 < np.exp(found.prior).sum() < 1.3
        assert (found.prior <= found.scores).all()
        silent = [i for i in place.ids if not upstream.spells(i) and i not in upstream.end]
        assert silent
        assert np.isneginf(found.prior[silent]).all()


def test_tokens_seen_together_share_the_priors_mass(trained: list[Place]) -> None:
    place = trained[0]
    found = surveyed(place.bridge, place.plan, place.models[0])
    token_map = place.bridge.map
    numbers = [token_map.upstream.id_of(t) for t in (b"12", b"123", b"1999", b"100")]
    ids = [i for i in numbers if i is not None and not np.diff(token_map.frt_ptr)[i]]
    assert len(ids) >= 3
    scores, prior = found.scores[ids], found.prior[ids]
    assert np.ptp(scores) < 1e-12
    alike = np.flatnonzero(token_map.first == token_map.first[ids[0]])
    unreached = [i for i in alike if not np.diff(token_map.frt_ptr)[i]]
    assert scores - prior == pytest.approx(np.log(len(unreached) / LONGER), abs=1e-2)


def test_several_ends_share_their_mass(token_map: TokenMap, gpt: Vocabulary) -> None:
    special = gpt.specials["<|sys|>"]
    (end,) = gpt.end
    ended = replace(token_map, upstream=replace(gpt, end=frozenset({end, special})))
    bridge = FastBridge(ended, frozenset({1, 5}), Clamp(), floor=0.0)
    plan = bridge.plan(Context(BOS, b"The end.\n", ()))
    model = worlds.hash_model("expert", token_map.pair)
    found = surveyed(bridge, plan, model)
    assert found.scores[end] == found.scores[special]
    assert found.prior[end] == found.prior[special] == pytest.approx(found.scores[end] - np.log(2))
    row = np.array(model(path_to(plan, plan.heads[0].node)))
    other = gpt.id_of(b"T")
    assert other is not None
    begun = token_map.frt_ids[token_map.frt_ptr[other] : token_map.frt_ptr[other + 1]]
    expected = np.log(row[[1, 5]].sum()) - np.log(row[begun].sum())
    assert found.scores[end] - found.scores[other] == pytest.approx(expected)
    nothing = FastBridge(ended, frozenset(), Clamp())
    assert np.isneginf(surveyed(nothing, plan, model).scores[end])


def test_clamps(token_map: TokenMap, gpt: Vocabulary, trained: list[Place]) -> None:
    (end,) = gpt.end
    held = FastBridge(token_map, ENDS, Clamp(1.0, 0.25))
    place = trained[1]
    surveys = [surveyed(held, place.plan, model) for model in place.models]
    free, whole = place.bridge.whole(*surveys), held.whole(*surveys)
    limit = np.ones(len(gpt.tokens))
    limit[end] = 0.25
    np.testing.assert_array_equal(whole.delta, np.clip(free.delta, -limit, limit))
    np.testing.assert_array_equal(whole.high, np.clip(free.high, -limit, limit))
    assert (np.abs(free.delta) > limit).sum() > 10


def test_rows_may_be_longer_than_the_vocabulary(trained: list[Place], digits: Vocabulary) -> None:
    """As the last layers of models are."""
    place = trained[3]
    rows = rows_of(place.bridge, place.plan, place.models[0])
    padded = replace(rows, rows=np.pad(rows.rows, ((0, 0), (0, 7)), constant_values=-3.0))
    left, right = (place.bridge.survey(place.plan, some) for some in (rows, padded))
    np.testing.assert_array_equal(left.scores, right.scores)
    identity = IdentityBridge(digits)
    plan = identity.plan(Context(BOS, b"a", ()))
    plain = rows_of(identity, plan, place.models[0])
    wide = replace(plain, rows=np.pad(plain.rows, ((0, 0), (0, 7))))
    assert len(identity.survey(plan, wide).scores) == len(digits.tokens)


def test_one_tokenizer_is_read_as_it_is(digits: Vocabulary, trained: list[Place]) -> None:
    identity = IdentityBridge(digits)
    plan = identity.plan(Context(BOS, b"It's 12", digits.encode(b" they")))
    expert, anti = (surveyed(identity, plan, model) for model in trained[0].models)
    whole = identity.whole(expert, anti)
    ids = list(range(len(digits.tokens)))
    expected = worlds.offsets(identity, plan, ids, *trained[0].models)
    np.testing.assert_array_equal(whole.delta, expected.delta)
    np.testing.assert_array_equal(whole.high, expected.delta)
    path = path_to(plan, -1)
    np.testing.assert_array_equal(whole.prior, np.log(trained[0].models[1](path)))
    assert np.exp(whole.prior).sum() == pytest.approx(1.0)


def test_texts_that_a_model_finds_all_but_impossible(trained: list[Place]) -> None:
    """The end head far below the others, or at zero."""
    place = next(p for p in trained if p.plan.heads[0].path_nodes and len(p.plan.heads) > 2)
    rows = rows_of(place.bridge, place.plan, place.models[0])
    for least in (-50.0, -900.0, -np.inf):
        nodes = rows.nodes.copy()
        nodes[list(place.plan.heads[0].path_nodes)] = least
        found = place.bridge.survey(place.plan, replace(rows, nodes=nodes))
        known = ~np.isneginf(found.scores)
        assert known.sum() > 500
        for values in (found.scores, found.low, found.high):
            assert np.isfinite(values[known]).all()
