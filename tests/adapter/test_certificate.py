"""Certificates against upstreams that show everything: what is certified must hold there."""

import math
from dataclasses import dataclass, replace

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.candidates import Candidate, Position, make_position
from adapter.certificate import NEGLIGIBLE, Certificate, Tail, certify, expanded
from adapter.request import Sampling
from adapter.steering import Adapted, best, penalised, steer

SIZE = 150
GREEDY = Sampling(temperature=0)


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def named(token, logprob):
    return Candidate(token.to_bytes(2, "big"), logprob, token)


def top(logprobs, k):
    order = np.lexsort((np.arange(len(logprobs)), -logprobs))[:k]
    return make_position([named(int(i), float(logprobs[i])) for i in order], None)


@dataclass
class Whole:
    prior: np.ndarray
    delta: np.ndarray
    high: np.ndarray


@dataclass
class World:
    """An upstream's whole distribution, what it shows of it, and the pair's view."""

    upstream: np.ndarray
    whole: Whole
    position: Position
    sampling: Sampling
    counts: dict[int, int]
    tail: Tail

    def certificate(self) -> Certificate:
        adapted = self.adapted()
        scores = penalised(adapted, self.sampling, self.counts)
        return certify(adapted, scores, self.sampling, self.counts, self.tail)

    def adapted(self) -> Adapted:
        offsets = self.whole.delta[[c.id for c in self.position.candidates]]
        return steer(self.position, offsets, self.tail.alpha, self.tail.whole)

    def truth(self) -> np.ndarray:
        """The scores of the whole vocabulary after bias and penalties, by id."""
        scores = self.upstream + self.tail.alpha * self.whole.delta
        for token, bias in self.sampling.logit_bias.items():
            scores[token] += bias if bias > -100 else -math.inf
        for token, count in self.counts.items():
            scores[token] -= self.sampling.presence_penalty
            scores[token] -= self.sampling.frequency_penalty * count
        return scores


def worlds(k, bridged, temperature=0.0, seed=0):
    """Steps of every temper: sharp and flat, near and far pairs, with and without adjustments."""
    rng = np.random.default_rng([seed, k, bridged, int(10 * temperature)])
    while True:
        upstream = log_softmax(rng.choice([1.0, 3.0, 8.0]) * rng.normal(0, 1, SIZE))
        prior = log_softmax(upstream + rng.normal(0, 1, SIZE))
        delta = rng.choice([0.1, 0.7, 2.0]) * rng.normal(0, 1, SIZE)
        clamp = rng.choice([3.0, math.inf]) if bridged else math.inf
        delta = np.clip(delta, -clamp, clamp)
        slack = rng.exponential(0.3, SIZE) if bridged else 0.0
        whole = Whole(prior, delta, np.minimum(delta + slack, clamp))
        adjusted = {}
        counts = {}
        if rng.random() < 0.3:
            ids = rng.integers(0, SIZE, 6).tolist()
            bias = dict(zip(ids, (*rng.normal(0, 3, 5).tolist(), -100.0), strict=True))
            penalties = rng.normal(0, 0.5, 2).tolist()
            adjusted = {
                "logit_bias": bias,
                "presence_penalty": penalties[0],
                "frequency_penalty": penalties[1],
            }
            counts = dict.fromkeys(rng.integers(0, SIZE, 5).tolist(), 2)
        margin = 0.0
        if rng.random() < 0.3:  # an upstream that prints two digits
            upstream, margin = np.round(upstream, 2), 0.01
        if temperature:
            adjusted["temperature"] = float(rng.choice([0.3, 0.7, 1.0]))
        else:
            adjusted["temperature"] = 0.0
        alpha = float(rng.choice([0.0, 0.5, 1.0, 2.0]))
        tail = Tail(alpha, whole if rng.random() < 0.8 else None, None, float(clamp), margin)
        yield World(upstream, whole, top(upstream, k), Sampling(**adjusted), counts, tail)


def breaks(world: World, certificate: Certificate) -> bool:
    """Whether a certificate says something that is not so."""
    shown = [c.id for c in world.position.candidates]
    scores = world.truth()
    if world.sampling.greedy:
        order = np.lexsort((np.arange(SIZE), -world.upstream, -scores))
        adapted = world.adapted()
        drawn = best(adapted, penalised(adapted, world.sampling, world.counts))
        return certificate.certified and int(adapted.ids[drawn]) != order[0]
    if certificate.hidden_max is None:
        return certificate.certified
    shares = np.exp(log_softmax(scores / world.sampling.temperature))
    hidden = np.delete(shares, shown).sum()
    if certificate.certified and certificate.hidden_max > NEGLIGIBLE:
        return True
    # What is printed with two digits adds up to more or less than 1: one part in a hundred.
    return bool(hidden > certificate.hidden_max * (1 + 2 * world.tail.margin) + 1e-12)


def surveyed(stream, steps):
    """How many of so many steps are certified, and how many certificates are broken."""
    certified = broken = 0
    for _, world in zip(range(steps), stream, strict=False):
        certificate = world.certificate()
        certified += certificate.certified
        broken += breaks(world, certificate)
    return certified, broken


@pytest.mark.parametrize("bridged", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_no_certified_greedy_step_differs_from_the_whole_vocabularys(k, bridged):
    certified, broken = surveyed(worlds(k, bridged), 1500)
    assert broken == 0
    assert 150 < certified < 1400


@pytest.mark.parametrize("bridged", [False, True])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_no_draw_hides_more_than_it_says(k, bridged):
    certified, broken = surveyed(worlds(k, bridged, temperature=1.0), 1500)
    assert broken == 0
    assert 30 < certified < 1400


def lowered(world):
    """A sampled token beyond the top-k taken for the lowest of it."""
    return replace(world, position=replace(world.position, floor=world.position.floor - 2.0))


def narrowed(world):
    """Offsets believed to be lower than they are."""
    if world.tail.whole is None:
        return world
    whole = replace(world.tail.whole, high=world.tail.whole.high - 1.0)
    return replace(world, tail=replace(world.tail, whole=whole))


def forgotten(world):
    """A clamp that nothing keeps to."""
    return replace(world, tail=replace(world.tail, clamp=0.1))


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("wrongly", [lowered, narrowed, forgotten])
def test_canary_wrong_bounds_are_noticed(wrongly, temperature):
    stream = (wrongly(world) for world in worlds(5, False, temperature))
    assert surveyed(stream, 1500)[1] > 3


@pytest.mark.parametrize("temperature", [0.0, 1.0])
def test_canary_forgotten_bias_is_noticed(temperature):
    """Certificates made as if hidden tokens had no bias and no penalties."""
    broken = 0
    for _, world in zip(range(1500), worlds(5, False, temperature), strict=False):
        adapted = world.adapted()
        scores = penalised(adapted, world.sampling, world.counts)
        unaware = replace(world.sampling, logit_bias={}, presence_penalty=0, frequency_penalty=0)
        broken += breaks(world, certify(adapted, scores, unaware, {}, world.tail))
    assert broken > 3


@given(st.integers(0, 2**32 - 1), st.sampled_from([0.2, 0.5, 1.0]), st.sampled_from([1, 4, 10]))
@settings(max_examples=200, deadline=None)
def test_however_the_hidden_mass_lies(seed, temperature, k):
    """Not only as a softmax has it: on few tokens at the bound, on one, spread."""
    rng = np.random.default_rng(seed)
    logprobs = log_softmax(rng.choice([1.0, 4.0]) * rng.normal(0, 1, 40))
    high = rng.normal(0, 2, 40)
    position = top(logprobs, k)
    tail = Tail(1.0, Whole(logprobs, high, high))
    shown = [c.id for c in position.candidates]
    adapted = steer(position, high[shown], 1.0)
    sampling = Sampling(temperature=temperature)
    found = certify(adapted, adapted.scores, sampling, {}, tail).hidden_max
    hidden = np.setdiff1d(np.arange(40), shown)
    favourites = hidden[np.argsort(-high[hidden])]
    for order in (favourites, rng.permutation(hidden), np.sort(hidden)):
        masses, left = np.zeros(40), position.hidden
        for v in order:
            masses[v] = min(left, math.exp(position.floor))
            left -= masses[v]
        some = (masses[order] * np.exp(high[order])) ** (1 / temperature)
        rest = np.exp(adapted.scores / temperature).sum()
        share = some.sum() / (some.sum() + rest)
        assert share <= found + 1e-12
        if order is favourites and left <= 1e-12 and temperature == 1.0:
            assert found == pytest.approx(share, abs=1e-9)  # and it is no looser than it must be


# --- contenders and expansion


def test_contenders_are_the_hidden_tokens_that_may_win_best_first():
    upstream = log_softmax(np.array([5.0, 4.0, 3.0, 2.0, 1.0, 0.0]))
    delta = np.array([0.0, 0.0, 0.0, 1.5, 4.0, 0.1])
    position = top(upstream, 2)
    adapted = steer(position, np.zeros(2), 1.0)
    tail = Tail(1.0, Whole(upstream, delta, delta))
    found = certify(adapted, adapted.scores, GREEDY, {}, tail)
    # the bound is ln h here: about 0.09; token 2 cannot reach 0.63, 3 can only just not
    upper = tail.bound(position) + delta
    able = [v for v in (4, 3, 5, 2) if upper[v] >= upstream[0]]
    assert found == Certificate(False, None, tuple(able))
    assert certify(adapted, adapted.scores, GREEDY, {}, tail, most=1).contenders == (4,)
    assert certify(adapted, adapted.scores, GREEDY, {}, tail, most=0) == replace(
        found, contenders=()
    )
    banned = Sampling(temperature=0, logit_bias={4: -100})
    assert 4 not in certify(adapted, adapted.scores, banned, {}, tail).contenders


@pytest.mark.parametrize("k", [1, 5])
def test_expansion_ends_in_the_whole_vocabularys_choice(k):
    """Contenders scored exactly, again and again: certified sooner or later, and right."""
    rounds = []
    for _, start in zip(range(300), worlds(k, True, seed=1), strict=False):
        if start.tail.whole is None:
            continue
        world, certificate, done = start, start.certificate(), 0
        while not certificate.certified and done < 20:
            assert not breaks(world, certificate)
            exact = {v: float(world.upstream[v]) for v in certificate.contenders}
            assert exact
            grown = expanded(world.position, exact, named)
            assert len(grown.candidates) == len(world.position.candidates) + len(exact)
            world = replace(world, position=grown)
            certificate, done = world.certificate(), done + 1
        assert certificate.certified
        assert not breaks(world, certificate)
        rounds.append(done)
    assert max(rounds) > 1
    assert rounds.count(1) > 10


def test_expanded_positions():
    logprobs = np.log([0.4, 0.1, 0.2, 0.2, 0.06, 0.04])
    position = top(logprobs, 2)
    grown = expanded(position, {3: math.log(0.2), 4: math.log(0.06), 0: -9.0}, named)
    assert [c.id for c in grown.candidates] == [0, 2, 3, 4]
    assert grown.candidates[0] == position.candidates[0]
    assert grown.hidden == pytest.approx(0.14)
    assert grown.floor == position.floor == math.log(0.2)
    assert expanded(position, {i: float(logprobs[i]) for i in range(6)}, named).hidden < 1e-15
    nameless = expanded(position, {3: -1.0}, lambda token, logprob: None)
    assert nameless == position


# --- edges


def alone(logprob, hidden, floor=None, **tail):
    position = Position((named(0, logprob),), None, hidden, logprob if floor is None else floor)
    adapted = steer(position, np.zeros(1), tail.get("alpha", 0.0))
    return lambda sampling, counts: certify(
        adapted, penalised(adapted, sampling, counts), sampling, counts, Tail(**tail)
    )


def test_the_upstreams_own_favourite_is_certified_while_nothing_moves_scores():
    step = alone(math.log(0.3), 0.7, alpha=0.0, margin=1e-5)
    assert step(GREEDY, {}).certified
    assert step(GREEDY, {0: 3}).certified
    assert not step(Sampling(temperature=0, presence_penalty=1), {0: 1}).certified
    assert not step(Sampling(temperature=0, presence_penalty=-1), {7: 1}).certified
    assert step(Sampling(temperature=0, logit_bias={7: -1.0}), {}).certified
    assert not alone(math.log(0.3), 0.7, floor=0.0, alpha=0.0)(GREEDY, {}).certified


def test_without_a_view_of_the_vocabulary_only_a_clamp_can_certify():
    cautious = alone(math.log(0.999), 0.001, alpha=1.0)
    assert cautious(GREEDY, {}) == Certificate(False)
    assert cautious(Sampling(), {}) == Certificate(False)
    clamped = alone(math.log(0.999), 0.001, alpha=1.0, clamp=5.0)
    assert clamped(GREEDY, {}).certified
    found = clamped(Sampling(), {})
    assert found.hidden_max == pytest.approx(math.exp(5) / (math.exp(5) + 999))
    assert not found.certified


def test_negative_strengths_turn_bounds_round():
    whole = Whole(np.zeros(3), np.zeros(3), np.zeros(3))
    assert not alone(math.log(0.9), 0.1, alpha=-1.0, whole=whole)(GREEDY, {}).certified
    assert alone(math.log(0.99), 0.01, alpha=-1.0, clamp=2.0)(GREEDY, {}).certified


def test_nothing_hidden_is_certain_and_hot_draws_never_are():
    for sampling, share in ((GREEDY, None), (Sampling(), 0.0)):
        assert alone(0.0, 0.0, alpha=2.0)(sampling, {}) == Certificate(True, share)
        every = alone(0.0, 0.0, alpha=2.0, hideable=np.ones(1, np.bool_), margin=1e-5)
        assert every(sampling, {}) == Certificate(True, share)
    assert alone(0.0, 1e-12, alpha=0.0)(Sampling(temperature=1.01), {}) == Certificate(False)
    assert alone(0.0, 1e-12, alpha=0.0)(Sampling(temperature=1.0), {}).certified


def test_all_that_is_shown_may_be_banned():
    step = alone(math.log(0.9), 0.1, alpha=0.0)
    banned = {"logit_bias": {0: -100}}
    assert not step(Sampling(temperature=0, **banned), {}).certified
    assert step(Sampling(**banned), {}).hidden_max == 1.0
