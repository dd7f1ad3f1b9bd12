"""The arithmetic against its obvious float64 twin, and the draws against their distribution."""

import math

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy.stats import chisquare

from adapter.candidates import END, Candidate, Position, make_position
from adapter.request import Sampling
from adapter.steering import draw, gumbel, hidden_wishes, nucleus, penalised, steer


def log_softmax(x):
    return x - np.logaddexp.reduce(x)


def position_of(logprobs, hidden=0.0):
    """A position that shows every token of a tiny vocabulary, ids in the order given."""
    order = sorted(range(len(logprobs)), key=lambda i: (-logprobs[i], i))
    candidates = tuple(Candidate(bytes([i]), float(logprobs[i]), id=i) for i in order)
    return Position(candidates, candidates[0], hidden)


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


def test_the_hidden_mass_keeps_offset_zero():
    position = position_of(np.log([0.5, 0.2]), hidden=0.3)
    adapted = steer(position, np.array([1.0, -1.0]), 1.0)
    masses = np.array([0.5 * math.e, 0.2 / math.e])
    assert np.allclose(np.exp(adapted.logprobs), masses / (masses.sum() + 0.3), atol=1e-15)


@given(st.lists(st.floats(-30, -0.01), min_size=1, max_size=20))
def test_alpha_zero_reports_the_upstreams_own_numbers(logprobs):
    position = position_of(logprobs, hidden=0.1)
    adapted = steer(position, np.full(len(logprobs), 7.0), 0.0)
    assert [float(x) for x in adapted.logprobs] == [c.logprob for c in position.candidates]


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


def test_wishes_are_raised_tokens_that_are_not_shown():
    position = position_of(np.log([0.6, 0.4]))
    assert hidden_wishes(position, {0: 5.0, 9: 1.0, 8: -100.0}) == (9,)


def test_the_nucleus_is_the_smallest_set_with_the_mass():
    scores = np.log([0.1, 0.5, 0.15, 0.25])
    assert np.isfinite(nucleus(scores, 0.5)).tolist() == [False, True, False, False]
    assert np.isfinite(nucleus(scores, 0.51)).tolist() == [False, True, False, True]
    assert np.isfinite(nucleus(scores, 1e-9)).sum() == 1
    assert np.isfinite(nucleus(scores, 1.0)).all()


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
    assert position.candidates[draw(tied.scores, Sampling(temperature=0), None)].id == 9
    assert [c.id for c in position.candidates] == [9, 4, 5]


def test_noise_is_a_function_of_the_token_alone():
    tokens = [Candidate(bytes([i]), -1.0, id=i) for i in range(20)]
    noise = dict(zip([c.id for c in tokens], gumbel(7, 0, 3, tokens), strict=True))
    again = dict(zip([c.id for c in tokens[::-3]], gumbel(7, 0, 3, tokens[::-3]), strict=True))
    assert all(noise[i] == again[i] for i in again)
    other_ids = [Candidate(c.token, -5.0, id=100 + (c.id or 0)) for c in tokens]
    assert (gumbel(7, 0, 3, other_ids) == gumbel(7, 0, 3, tokens)).all()
    for arguments in [(8, 0, 3), (7, 1, 3), (7, 0, 4)]:
        assert not np.isclose(gumbel(*arguments, tokens), gumbel(7, 0, 3, tokens)).any()


def test_end_and_the_bytes_of_its_name_have_different_noise():
    end, text = Candidate(b"", -1.0, id=0, special=END), Candidate(END.encode(), -1.0, id=1)
    first, second = gumbel(1, 0, 0, [end, text])
    assert first != second


def drawn_counts(scores, sampling, candidates, samples):
    counts = np.zeros(len(candidates))
    for at in range(samples):
        counts[draw(scores, sampling, gumbel(11, 0, at, candidates))] += 1
    return counts


@pytest.mark.parametrize(("temperature", "top_p"), [(1.0, 1.0), (0.7, 1.0), (1.0, 0.8), (1.8, 0.9)])
def test_draws_follow_the_filtered_distribution(temperature, top_p):
    target = np.array([0.35, 0.25, 0.15, 0.12, 0.08, 0.05])
    position = position_of(np.log(target))
    sampling = Sampling(temperature=temperature, top_p=top_p)
    scores = steer(position, np.zeros(6), 1.0).scores
    tempered = target ** (1 / temperature) / (target ** (1 / temperature)).sum()
    keep = np.cumsum(tempered) - tempered < top_p
    expected = np.where(keep, tempered, 0) / tempered[keep].sum()
    counts = drawn_counts(scores, sampling, position.candidates, 20_000)
    assert counts[~keep].sum() == 0
    assert chisquare(counts[keep], expected[keep] * 20_000).pvalue > 1e-4


def test_canary_draws_at_the_wrong_temperature_are_noticed():
    target = np.array([0.4, 0.3, 0.2, 0.1])
    position = position_of(np.log(target))
    scores = steer(position, np.zeros(4), 1.0).scores
    counts = drawn_counts(scores, Sampling(temperature=0.8), position.candidates, 20_000)
    assert chisquare(counts, target * 20_000).pvalue < 1e-6


def test_nothing_to_draw_from_is_an_error():
    with pytest.raises(ValueError, match="banned"):
        draw(np.array([-math.inf, -math.inf]), Sampling(), np.zeros(2))
