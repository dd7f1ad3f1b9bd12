"""The arithmetic against its obvious float64 twin, and the draws against their distribution."""

import math
from dataclasses import dataclass

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare, kstest

from adapter.candidates import END, Candidate, Position, make_position
from adapter.request import Sampling
from adapter.steering import (
    draw,
    filtered,
    gumbel,
    hidden_wishes,
    log_sum,
    noise,
    nucleus,
    penalised,
    steer,
    token_words,
)


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def position_of(logprobs, hidden=0.0):
    """A position that shows every token of a tiny vocabulary, ids in the order given."""
    order = sorted(range(len(logprobs)), key=lambda i: (-logprobs[i], i))
    candidates = tuple(named(i, float(logprobs[i])) for i in order)
    return Position(candidates, candidates[0], hidden)


def top(logprobs, k):
    """The k best of a vocabulary as an upstream shows them; the rest is hidden."""
    order = np.lexsort((np.arange(len(logprobs)), -logprobs))[:k]
    return make_position([named(int(i), float(logprobs[i])) for i in order], None)


def named(token, logprob):
    return Candidate(token.to_bytes(3, "big"), logprob, token)


@dataclass
class Whole:
    prior: np.ndarray
    delta: np.ndarray
    high: np.ndarray


def whole_of(rng, size):
    prior = log_softmax(rng.normal(0, 3, size)) + 1.7  # up to a constant
    delta = rng.normal(0, 2, size)
    return Whole(prior, delta, delta + rng.exponential(0.1, size))


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0, 4.0])
def test_full_vocabulary_is_equation_1(alpha):
    rng = np.random.default_rng(3)
    for _ in range(50):
        base, expert, anti = (log_softmax(rng.normal(0, 3, 40)) for _ in range(3))
        position = position_of(base)
        ids = [c.id for c in position.candidates]
        adapted = steer(position, (expert - anti)[ids], alpha)
        # Equation 1 on raw scores, normalised over the whole vocabulary
        target = log_softmax(base + alpha * (expert - anti))[ids]
        assert np.abs(adapted.logprobs - target).max() < 1e-12


@given(st.floats(-50, 50), st.integers(0, 2**32 - 1))
def test_a_constant_in_the_offsets_changes_nothing_where_all_is_shown(shift, seed):
    rng = np.random.default_rng(seed)
    position = position_of(log_softmax(rng.normal(0, 3, 20)))
    offsets = rng.normal(0, 2, 20)
    plain, shifted = steer(position, offsets, 1.5), steer(position, offsets + shift, 1.5)
    assert np.abs(plain.logprobs - shifted.logprobs).max() < 1e-9


# --- the hidden tail


def test_the_hidden_mass_keeps_offset_zero():
    position = position_of(np.log([0.5, 0.2]), hidden=0.3)
    adapted = steer(position, np.array([1.0, -1.0]), 1.0)
    masses = np.array([0.5 * math.e, 0.2 / math.e])
    assert np.allclose(np.exp(adapted.logprobs), masses / (masses.sum() + 0.3), atol=1e-15)


@given(st.lists(st.floats(-30, -0.01), min_size=1, max_size=20))
def test_alpha_zero_reports_the_upstreams_own_numbers(logprobs):
    position = position_of(logprobs, hidden=0.1)
    whole = whole_of(np.random.default_rng(1), 90)
    for tail in (None, whole):
        adapted = steer(position, np.full(len(logprobs), 7.0), 0.0, tail)
        assert [float(x) for x in adapted.logprobs] == [c.logprob for c in position.candidates]


def plainly_imputed(position, offsets, alpha, whole, hideable):
    """The rule of the design, token by token: {id: (ℓ, Δ, log p)}."""
    found = {c.id: (c.logprob, d) for c, d in zip(position.candidates, offsets, strict=True)}
    hidden = [v for v in range(len(whole.prior)) if hideable[v] and v not in found]
    low, high = -50.0, 50.0
    for _ in range(200):  # the constant for which the tail has the hidden mass
        middle = (low + high) / 2
        each = [min(position.floor, whole.prior[v] + middle) for v in hidden]
        below = math.fsum(map(math.exp, each)) < position.hidden
        low, high = (middle, high) if below else (low, middle)
    for v in hidden:
        if whole.prior[v] > -math.inf:
            found[v] = min(position.floor, whole.prior[v] + low), whole.delta[v]
    norm = math.log(math.fsum(math.exp(x + alpha * d) for x, d in found.values()))
    return {v: (x, d, x + alpha * d - norm) for v, (x, d) in found.items()}


@pytest.mark.parametrize("alpha", [0.5, 2.0, 4.0])
@pytest.mark.parametrize("k", [1, 5, 20])
def test_the_tail_is_imputed_by_the_rule(alpha, k):
    rng = np.random.default_rng(k)
    capped = 0
    for _ in range(30):
        position, whole = top(log_softmax(rng.normal(0, 3, 60)), k), whole_of(rng, 60)
        hideable = rng.random(60) < 0.9
        whole.prior[rng.integers(0, 60, 3)] = -math.inf
        offsets = rng.normal(0, 2, k)
        adapted = steer(position, offsets, alpha, whole, hideable)
        expected = plainly_imputed(position, offsets, alpha, whole, hideable)
        assert adapted.ids[k:].tolist() == sorted(adapted.ids[k:].tolist())
        assert set(adapted.ids.tolist()) == set(expected)
        for i, v in enumerate(adapted.ids.tolist()):
            got = adapted.upstream[i], adapted.offsets[i], adapted.logprobs[i]
            assert got == pytest.approx(expected[v], abs=1e-9)
        assert adapted.scores == pytest.approx(adapted.upstream + alpha * adapted.offsets)
        assert math.isclose(np.exp(adapted.logprobs).sum(), 1.0)
        capped += (adapted.upstream[k:] == position.floor).sum()
    assert capped > 0


@pytest.mark.parametrize("k", [1, 5, 20])
def test_small_strengths_lead_to_the_upstreams_own_numbers(k):
    rng = np.random.default_rng(k)
    for _ in range(20):
        position, whole = top(log_softmax(rng.normal(0, 2, 60)), k), whole_of(rng, 60)
        adapted = steer(position, rng.normal(0, 2, k), 1e-9, whole)
        assert math.isclose(np.exp(adapted.upstream[k:]).sum(), position.hidden)
        assert adapted.logprobs[:k] == pytest.approx(adapted.upstream[:k], abs=1e-7)


def test_a_tail_that_cannot_hold_its_mass_lies_at_the_floor():
    """As with a vocabulary that is not the upstream's."""
    position = Position((named(0, math.log(0.3)),), None, 0.7, math.log(0.3))
    whole = Whole(np.log([0.5, 0.4, 0.1]), np.zeros(3), np.zeros(3))
    assert (steer(position, np.zeros(1), 1.0, whole).upstream == position.floor).all()


def test_the_anti_expert_as_the_upstream_gives_equation_1_itself():
    """Where ℓ̂ is ℓ, the imputed distribution is the whole vocabulary's; floor never binds."""
    rng = np.random.default_rng(2)
    base, delta = log_softmax(rng.normal(0, 3, 200)), rng.normal(0, 1, 200)
    position = top(base, 5)
    offsets = delta[[c.id for c in position.candidates]]
    adapted = steer(position, offsets, 2.0, Whole(base, delta, delta))
    target = log_softmax(base + 2.0 * delta)
    assert np.abs(adapted.logprobs - target[adapted.ids]).max() < 1e-12


def test_nothing_is_imputed_where_nothing_is_hidden_or_nothing_can_be_given():
    rng = np.random.default_rng(0)
    base, whole = log_softmax(rng.normal(0, 1, 30)), whole_of(rng, 30)
    assert len(steer(position_of(base), np.zeros(30), 1.0, whole).ids) == 30
    position, offsets = top(base, 3), np.array([1.0, 0.0, -1.0])
    nothing = Whole(np.full(30, -math.inf), whole.delta, whole.high)
    plain = steer(position, offsets, 1.0)
    for tail, hideable in ((nothing, None), (whole, np.zeros(30, np.bool_))):
        adapted = steer(position, offsets, 1.0, tail, hideable)
        assert (adapted.logprobs == plain.logprobs).all()


def test_a_lost_entry_leaves_the_hidden_mass_as_the_only_bound():
    sent = [named(0, math.log(0.5)), named(1, math.log(0.1))]
    assert make_position(sent, None).floor == math.log(0.1)
    assert make_position([*sent, named(1, -20.0)], None).floor == math.log(0.1)
    for lost in (-math.inf, math.nan, -9999.0):
        position = make_position([*sent, named(2, lost)], None)
        assert position.floor == 0.0
        adapted = steer(position, np.zeros(2), 1.0, Whole(np.zeros(3), np.zeros(3), np.zeros(3)))
        assert adapted.upstream[2] == pytest.approx(math.log(0.4))


def test_entries_as_candidates():
    position = top(np.log([0.1, 0.5, 0.2, 0.2]), 2)
    adapted = steer(position, np.zeros(2), 1.0, Whole(np.zeros(4), np.zeros(4), np.zeros(4)))
    assert adapted.ids.tolist() == [1, 2, 0, 3]
    assert [adapted.imputed(i) for i in range(4)] == [False, False, True, True]
    assert adapted.candidate(0, named) is position.candidates[0]
    assert adapted.candidate(3, named) == named(3, adapted.upstream[3])


# --- bias and penalties


def test_bias_penalties_and_bans():
    position = position_of(np.log([0.4, 0.3, 0.2, 0.1]))
    adapted = steer(position, np.zeros(4), 1.0)
    sampling = Sampling(logit_bias={0: -100, 3: 2.0}, presence_penalty=0.5, frequency_penalty=0.25)
    scores = penalised(adapted, sampling, {1: 3})
    assert scores[0] == -math.inf
    assert scores[1] == pytest.approx(math.log(0.3) - 0.5 - 3 * 0.25)
    assert scores[2] == pytest.approx(math.log(0.2))
    assert scores[3] == pytest.approx(math.log(0.1) + 2.0)
    # the reported numbers stay those before bias and penalties
    assert adapted.logprobs == pytest.approx(np.log([0.4, 0.3, 0.2, 0.1]))


def test_bias_and_penalties_reach_hidden_tokens():
    rng = np.random.default_rng(4)
    position, whole = top(log_softmax(rng.normal(0, 2, 50)), 5), whole_of(rng, 50)
    adapted = steer(position, np.zeros(5), 1.0, whole)
    at = {v: i for i, v in enumerate(adapted.ids.tolist())}
    hidden = adapted.ids[5:].tolist()
    counts = {hidden[0]: 2, 999: 1, int(adapted.ids[0]): 1}
    sampling = Sampling(
        logit_bias={hidden[7]: -100, hidden[8]: 3.0, 777: 5.0, -1: 5.0}, frequency_penalty=0.5
    )
    moved = penalised(adapted, sampling, counts) - adapted.scores
    expected = {at[hidden[0]]: -1.0, 0: -0.5, at[hidden[7]]: -math.inf, at[hidden[8]]: 3.0}
    assert moved == pytest.approx([expected.get(i, 0.0) for i in range(50)])
    assert (
        draw(
            adapted,
            penalised(adapted, Sampling(logit_bias={hidden[3]: 90.0}), {}),
            Sampling(temperature=0),
            None,
        )
        == at[hidden[3]]
    )


def test_wishes_are_raised_tokens_that_are_not_shown():
    position = position_of(np.log([0.6, 0.4]))
    assert hidden_wishes(position, {0: 5.0, 9: 1.0, 8: -100.0}) == (9,)


# --- drawing


def unsteered(logprobs, hidden=0.0):
    return steer(position_of(logprobs, hidden), np.zeros(len(logprobs)), 1.0)


def test_the_nucleus_is_the_smallest_set_with_the_mass():
    adapted = unsteered(np.log([0.5, 0.25, 0.15, 0.1]))
    assert np.isfinite(nucleus(adapted, adapted.scores, 0.5)).tolist() == [1, 0, 0, 0]
    assert np.isfinite(nucleus(adapted, adapted.scores, 0.51)).tolist() == [1, 1, 0, 0]
    assert np.isfinite(nucleus(adapted, adapted.scores, 1e-9)).sum() == 1
    assert np.isfinite(nucleus(adapted, adapted.scores, 1.0)).all()


@pytest.mark.parametrize("top_p", [1e-6, 0.1003, 0.5003, 0.9003, 1 - 1e-7])
def test_the_nucleus_over_candidates_and_tail(top_p):
    """Against sorting all of it."""
    rng = np.random.default_rng(5)
    for size in (40, 3000):
        for spread in (0.0, 1.0, 6.0):
            position, whole = top(log_softmax(rng.normal(0, 3, size)), 5), whole_of(rng, size)
            adapted = steer(position, rng.normal(0, 1, 5), 1.0, whole)
            scores = spread * adapted.scores
            order = sorted(
                range(size), key=lambda i: (-scores[i], -adapted.upstream[i], adapted.ids[i])
            )
            mass = np.exp(log_softmax(scores))[order]
            count = 1 + int((np.cumsum(mass)[:-1] < top_p).sum())
            kept = np.flatnonzero(np.isfinite(nucleus(adapted, scores, top_p)))
            assert kept.tolist() == sorted(order[:count])


def test_ties_go_to_the_higher_upstream_logprob_then_the_lower_id():
    entries = [
        Candidate(b"a", -2.0, id=5),
        Candidate(b"b", -1.0, id=9),
        Candidate(b"c", -2.0, id=4),
    ]
    position = make_position(entries, None)
    offsets = np.array([1.0 if c.id == 5 else 0.0 for c in position.candidates])
    tied = steer(position, offsets, 1.0)
    assert tied.scores[0] == tied.scores[2]
    assert position.candidates[draw(tied, tied.scores, Sampling(temperature=0), None)].id == 9
    assert [c.id for c in position.candidates] == [9, 4, 5]


def test_ties_with_hidden_tokens():
    floor = math.log(0.2)
    position = Position((named(6, math.log(0.3)), named(5, floor)), None, 0.5, floor)
    flat = Whole(np.zeros(8), np.zeros(8), np.zeros(8))
    adapted = steer(position, np.zeros(2), 1.0, flat)
    greedy = Sampling(temperature=0)

    def first(scores):
        return int(adapted.ids[draw(adapted, np.array(scores), greedy, None)])

    assert (adapted.upstream[2:] == adapted.upstream[2]).all()
    assert first([0.0] * 8) == 6  # the highest ℓ
    assert first([-1.0] + [0.0] * 7) == 5
    assert first([-1.0, -1.0] + [0.0] * 6) == 0
    assert first([-1.0, -1.0, -1.0, 0.0, 0.0, 0.0, 0.0, 0.0]) == 1
    equal = steer(replace_floor(position, -9.0), np.array([-9.0 - math.log(0.3), 0.0]), 1.0, flat)
    assert equal.scores[0] == pytest.approx(equal.scores[2])


def replace_floor(position, floor):
    return Position(position.candidates, position.drafted, position.hidden, floor)


NAMES = [(bytes([i]), None) for i in range(20)]


def test_noise_is_a_function_of_the_token_alone():
    words = token_words(NAMES)
    few = token_words(NAMES[::-3])
    assert (few == words[::-3]).all()
    assert (noise(7, 0, 3, few) == noise(7, 0, 3, words)[::-3]).all()
    for arguments in [(8, 0, 3), (7, 1, 3), (7, 0, 4), (-7, 0, 3)]:
        assert not np.isclose(noise(*arguments, words), noise(7, 0, 3, words)).any()


def test_entries_have_the_words_of_the_vocabulary():
    rng = np.random.default_rng(1)
    words = token_words((i.to_bytes(3, "big"), None) for i in range(50))
    position = top(log_softmax(rng.normal(0, 2, 50)), 5)
    unknown = Position((*position.candidates, Candidate(b"?", -9.0)), None, position.hidden)
    shown = [c.id for c in position.candidates]
    for k in (5, 50):
        tail = whole_of(rng, 50) if k == 50 else None
        adapted = steer(unknown, np.zeros(6), 1.0, tail)
        found = adapted.words(words)
        assert (found[:5] == words[shown]).all()
        assert found[5] == token_words([(b"?", None)])[0]
        assert (found[6:] == words[adapted.ids[6:]]).all()
        assert len(found) == len(adapted.ids) == k + 1
    assert (steer(unknown, np.zeros(6), 1.0).words() == found[:6]).all()


def test_tokens_of_one_name_have_different_noise():
    words = token_words([(b"a", None), (b"a", None), (b"", END), (b"", END), (END.encode(), None)])
    assert len(set(words.tolist())) == 5
    assert words[0] == token_words([(b"a", None)])[0]


def test_noise_stays_what_it_was():
    """Seeds promise the same text from release to release."""
    words = token_words([(b" the", None), (b"", END)])
    assert [hex(w) for w in words.tolist()] == GOLDEN_WORDS
    assert noise(1, 0, 0, words).tolist() == GOLDEN[0]
    assert noise(2**62, 3, 1000, words).tolist() == GOLDEN[1]


GOLDEN_WORDS = ["0x7cff48bad64f0914", "0x90f8acb9234cc99b"]
GOLDEN = [
    [0.45064898374435514, 0.5870152736820965],
    [0.04019027789164087, 0.09526421620799186],
]


def test_noise_never_reaches_zero_or_one():
    """52 bits: where the mixed word is all zeros or all ones."""
    found = noise(0, 0, 0, np.arange(200_000, dtype=np.uint64))
    assert 0 < found.min() < 1e-4
    assert 1 > found.max() > 1 - 1e-4
    assert np.isfinite(gumbel(np.array([2.0**-53, 1 - 2.0**-53]))).all()


def uniforms():
    """Variates of 500 tokens at 400 places, rows are places."""
    words = token_words((i.to_bytes(2, "big"), None) for i in range(500))
    return np.array([noise(3, 0, at, words) for at in range(400)])


def test_noise_is_uniform_and_gumbels_are_gumbels():
    found = uniforms().ravel()
    assert kstest(found, "uniform").pvalue > 1e-4
    variates = gumbel(found)
    assert kstest(variates, "gumbel_r").pvalue > 1e-4
    error = math.pi / math.sqrt(6 * len(variates))
    assert abs(variates.mean() - np.euler_gamma) < 4 * error
    assert abs(variates.var() / (math.pi**2 / 6) - 1) < 0.03


def paired(left, right):
    """The p-value of 8 × 8 cells being equally full."""
    cells = (left * 8).astype(int) * 8 + (right * 8).astype(int)
    return chisquare(np.bincount(cells.ravel(), minlength=64)).pvalue


def test_noise_is_independent_across_tokens_positions_choices_and_seeds():
    found = uniforms()
    words = token_words((i.to_bytes(2, "big"), None) for i in range(500))
    base = np.array([noise(3, 0, at, words) for at in range(100)])
    choice = np.array([noise(3, 1, at, words) for at in range(100)])
    seed = np.array([noise(4, 0, at, words) for at in range(100)])
    pairs = {
        "positions": (found[:-1], found[1:]),
        "tokens": (found[:, :-1], found[:, 1:]),
        "choices": (base, choice),
        "seeds": (base, seed),
    }
    assert {name: paired(*two) > 1e-4 for name, two in pairs.items()} == dict.fromkeys(pairs, True)
    # words that differ in one bit
    near = noise(3, 0, 0, np.arange(100_000, dtype=np.uint64))
    assert paired(near[::2], near[1::2]) > 1e-4


def test_canary_noise_that_forgets_the_choice_is_noticed():
    words = token_words((i.to_bytes(2, "big"), None) for i in range(500))
    base = noise(3, 0, 0, words)
    assert paired(base, base) < 1e-9


def test_draws_are_the_best_of_score_and_gumbel():
    """The race with few logarithms against all of them."""
    rng = np.random.default_rng(8)
    for at in range(300):
        size = int(rng.integers(2, 400))
        adapted = unsteered(log_softmax(rng.normal(0, rng.choice([0.0, 1.0, 10.0]), size)))
        scores = adapted.scores.copy()
        scores[rng.integers(0, size, size // 3)] = -math.inf
        if not np.isfinite(scores).any():
            continue
        sampling = Sampling(temperature=float(rng.choice([0.1, 1.0, 2.0])), top_p=0.97)
        variates = noise(1, 0, at, adapted.words())
        plain = filtered(adapted, scores, sampling) + gumbel(variates)
        assert draw(adapted, scores, sampling, variates) == int(np.argmax(plain))


def drawn_counts(adapted, sampling, samples):
    counts = np.zeros(len(adapted.ids))
    words = adapted.words(token_words((i.to_bytes(3, "big"), None) for i in range(100)))
    for at in range(samples):
        counts[draw(adapted, adapted.scores, sampling, noise(11, 0, at, words))] += 1
    return counts


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (1.8, 0.9)])
def test_draws_follow_the_filtered_distribution(temperature, top_p):
    target = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])
    sampling = Sampling(temperature=temperature, top_p=top_p)
    tempered = target ** (1 / temperature) / (target ** (1 / temperature)).sum()
    keep = np.cumsum(tempered) - tempered < top_p
    expected = np.where(keep, tempered, 0) / tempered[keep].sum()
    counts = drawn_counts(unsteered(np.log(target)), sampling, 20_000)
    assert counts[~keep].sum() == 0
    assert chisquare(counts[keep], expected[keep] * 20_000).pvalue > 1e-4


def test_draws_from_the_imputed_tail_follow_its_distribution():
    rng = np.random.default_rng(6)
    position, whole = top(log_softmax(rng.normal(0, 1, 12)), 4), whole_of(rng, 12)
    adapted = steer(position, rng.normal(0, 1, 4), 1.0, whole)
    counts = drawn_counts(adapted, Sampling(), 20_000)
    assert counts[4:].sum() > 1000
    assert chisquare(counts, np.exp(adapted.logprobs) * 20_000).pvalue > 1e-4


def test_canary_draws_at_the_wrong_temperature_are_noticed():
    target = np.array([0.4, 0.3, 0.2, 0.1])
    counts = drawn_counts(unsteered(np.log(target)), Sampling(temperature=0.8), 20_000)
    assert chisquare(counts, target * 20_000).pvalue < 1e-6


def test_nothing_to_draw_from_is_an_error():
    adapted = unsteered(np.log([0.5, 0.5]))
    with pytest.raises(ValueError, match="banned"):
        draw(adapted, np.array([-math.inf, -math.inf]), Sampling(), np.full(2, 0.5))


@given(st.lists(st.one_of(st.floats(-500, 500), st.just(-math.inf)), max_size=30))
def test_log_sums(values):
    found = log_sum(np.array(values))
    assert found == pytest.approx(np.logaddexp.reduce(np.array([-math.inf, *values])), abs=1e-12)
