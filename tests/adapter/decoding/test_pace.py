"""How many tokens to ask for: the known optimum, and what is learnt from calls."""

import numpy as np
import pytest

from adapter.decoding.pace import LONGEST, Pace, Stride
from adapter.price import Price


def cost(n, kept, call, token):
    """Seconds or money a kept token, one call at a time: the sum behind the closed form."""
    tokens = sum(kept**i for i in range(n))
    return (call + token * n) / tokens


def learnt(call, token):
    pace = Pace()
    for tokens in [1, 4, 16, 64] * 100:
        pace.called(tokens, call + token * tokens)
    return pace


@pytest.mark.parametrize("kept", [0.3, 0.7, 0.85, 0.95])
@pytest.mark.parametrize(("call", "token"), [(0.3, 0.02), (0.05, 0.001), (0.01, 0.05)])
def test_the_best_n_costs_least_by_enumeration(kept, call, token):
    pace = learnt(call, token)
    best = min(range(1, LONGEST + 1), key=lambda n: cost(n, kept, call, token))
    found = pace.best(kept, prefix=100, left=LONGEST)
    assert cost(found, kept, call, token) == pytest.approx(cost(best, kept, call, token), rel=1e-3)


@pytest.mark.parametrize(("kept", "n"), [(0.7, 13), (0.85, 23), (0.95, 55)])
def test_money_for_a_prefix_of_1000_tokens_and_output_at_four_times_the_price(kept, n):
    """The optima of the design's table, uncached."""
    pace = Pace("money", Price(input=1.0, output=4.0, cached=1.0))
    assert pace.best(kept, prefix=1000, left=LONGEST) == pytest.approx(n, abs=1)


def test_cached_prompts_make_calls_cheaper_and_drafts_shorter():
    pace = Pace("money", Price(input=1.0, output=4.0, cached=0.1))
    before = pace.best(0.85, prefix=1000, left=LONGEST)
    for _ in range(500):
        pace.billed(prompt=1000, cached=1000)
    assert pace.best(0.85, prefix=1000, left=LONGEST) < before
    assert pace.cached == pytest.approx(1.0, abs=1e-3)


def test_seconds_are_learnt_from_noisy_calls_of_any_length():
    random, pace = np.random.default_rng(3), Pace()
    for _ in range(400):
        tokens = int(random.integers(1, 65))
        pace.called(tokens, 0.2 + 0.01 * tokens + random.normal(0, 0.01))
    assert pace.call_seconds == pytest.approx(0.2, abs=0.02)
    assert pace.token_seconds == pytest.approx(0.01, abs=0.001)


@pytest.mark.parametrize("kept", [0.7, 0.88])
@pytest.mark.parametrize(("call", "token"), [(0.055, 0.0015), (0.4, 0.025), (1.5, 0.02)])
@pytest.mark.parametrize("before", [[], [1] * 100, [4] * 32, [64] * 5])
def test_whatever_was_asked_before_auto_comes_to_a_good_length(kept, call, token, before):
    """Calls of one length do not tell what a call is and what a token is."""
    pace = Pace()

    def ask(n):
        pace.called(n, call + token * n)
        return cost(n, kept, call, token)

    for n in before:
        ask(n)
    least = min(cost(n, kept, call, token) for n in range(1, LONGEST + 1))
    costs = [ask(pace.best(kept, prefix=100, left=128)) for _ in range(20)]
    assert np.mean(costs) < 1.15 * least
    assert costs[-1] < 1.1 * least


def test_the_first_call_tells_how_fast_a_model_is_and_not_what_a_call_is_to_a_token():
    pace = Pace()
    before, length = pace.call_seconds / pace.token_seconds, pace.best(0.8, 100, LONGEST)
    pace.called(4, 0.001)
    assert pace.call_seconds + 4 * pace.token_seconds == pytest.approx(0.001)
    assert pace.call_seconds / pace.token_seconds == pytest.approx(before)
    assert pace.best(0.8, 100, LONGEST) == length


def test_calls_of_one_length_still_give_a_cost_that_is_no_less_than_nothing():
    pace = Pace()
    for _ in range(1000):
        pace.called(16, 0.001)
    assert pace.call_seconds > 0.0
    assert pace.token_seconds >= 0.0
    assert pace.call_seconds + 16 * pace.token_seconds == pytest.approx(0.001, rel=0.05)


def test_a_text_that_follows_its_draft_asks_for_more_and_one_that_does_not_for_less():
    pace = Pace()
    eager, wary = Stride(pace, "auto"), Stride(pace, "auto")
    start = eager.length(prefix=10, left=LONGEST)
    for _ in range(40):
        eager.walked(kept=True)
        wary.walked(kept=False)
    assert wary.length(10, LONGEST) < start < eager.length(10, LONGEST)
    assert wary.acceptance < 0.3
    assert eager.acceptance > 0.8


@pytest.mark.parametrize(
    ("lookahead", "left", "n"), [(8, 100, 8), (8, 3, 3), ("stream", 1000, 1000), ("auto", 1, 1)]
)
def test_nobody_asks_for_more_than_is_left(lookahead, left, n):
    assert Stride(Pace(), lookahead).length(prefix=10, left=left) == n
