"""What four choices of one request cost: apart, sharing what they see, and drawn together."""

from collections import Counter

import numpy as np
import pytest

from adapter.decoding import Frozen, Pace
from adapter.price import Price
from adapter.request import Sampling
from tests.support.generations import generation, run
from tests.support.synthetic import Synthetic, vocabulary_of_size
from tests.support.synthetic_pair import SyntheticReader

VOCABULARY = vocabulary_of_size(48)
PROMPTS = [tuple(2 + (i * j + j) % 40 for i in range(100)) for j in range(1, 21)]
LENGTH = len(PROMPTS[0])
SPARED = 3 * len(PROMPTS)
"""Calls that asking for all four choices at once can save, at the prompts themselves."""


async def cost(prompt, how, sampling, alpha, lookahead, pace=None):
    """Calls and billed tokens of four choices, which see what each other was shown unless apart."""
    upstream = Synthetic(
        VOCABULARY, k=20, seed=1, end_logit=-20.0, luck=sum(prompt), several=how == "together"
    )
    frozen, total = Frozen(upstream), Counter()
    for choice in range(4):
        one = generation(
            prompt,
            vocabulary=VOCABULARY,
            sampling=sampling,
            reader=SyntheticReader(prompt, 48, strength=0.3),
            alpha=alpha,
            choice=choice,
            choices=4,
            lookahead=lookahead,
            pace=pace,
        )
        _, ending = await run(upstream if how == "apart" else frozen, one)
        usage = ending.usage
        total += Counter(calls=usage.calls, read=usage.prompt_tokens, made=usage.completion_tokens)
    assert total["calls"] == upstream.calls
    return total


async def costs(how, alpha=1.0, lookahead=8, pace=None, **sampling):
    sampling = Sampling(max_tokens=16, **{"temperature": 1.0} | sampling)
    return sum([await cost(p, how, sampling, alpha, lookahead, pace) for p in PROMPTS], Counter())


async def test_greedy_choices_cost_no_more_than_one():
    four, one = await costs("together", temperature=0.0), await costs("apart", temperature=0.0)
    assert {name: 4 * count for name, count in four.items()} == one


@pytest.mark.parametrize("lookahead", [8, "stream"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
async def test_seeded_choices_already_cost_less_than_asked_for_at_once(alpha, lookahead):
    shared, apart = [await costs(h, alpha, lookahead, seed=3) for h in ("together", "apart")]
    assert shared["calls"] <= apart["calls"] - SPARED
    assert shared["read"] <= apart["read"] - SPARED * LENGTH
    assert shared["made"] < apart["made"]


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 0.8), (1.0, 0.87)])
async def test_free_choices_drawn_together_cost_their_first_calls_less(alpha, share):
    together, shared, apart = [await costs(h, alpha) for h in ("together", "shared", "apart")]
    assert together["calls"] <= share * shared["calls"]
    assert together["read"] <= share * shared["read"]
    assert together["calls"] <= 1.03 * (apart["calls"] - SPARED)
    assert together["made"] < 1.15 * shared["made"]


async def test_a_stream_is_one_choice():
    together, shared = [await costs(h, 0.0, "stream") for h in ("together", "shared")]
    assert together == shared


@pytest.mark.parametrize(("read", "together"), [(1.0, True), (0.1, False)])
async def test_where_reading_a_prompt_costs_next_to_nothing_each_asks_for_itself(read, together):
    """Else the tokens that siblings would have shared are paid for nothing."""
    pace = Pace("money", Price(input=read, output=4.0, cached=read))
    counts = [await costs(how, 0.0, pace=pace) for how in ("together", "shared")]
    assert (counts[0] != counts[1]) is together


class Noisy(Synthetic):
    """Says of the same place something else each time, as engines do."""

    def logprobs(self, ids):
        row = super().logprobs(ids) + 1e-5 * self._luck.standard_normal(len(self.vocabulary.tokens))
        return row - np.logaddexp.reduce(row)


async def test_what_was_seen_first_at_a_place_stays_for_drafts_of_ones_own():
    upstream = Noisy(VOCABULARY, k=20, end_logit=-20.0, several=True)
    frozen, seen = Frozen(upstream), {}
    for choice in range(4):
        sampling = Sampling(max_tokens=6, temperature=1.0)
        one = generation(
            PROMPTS[0], vocabulary=VOCABULARY, sampling=sampling, choice=choice, choices=4,
            lookahead=6, shown=3,
        )  # fmt: skip
        steps, said = (await run(frozen, one))[0], ()
        for step in steps:
            assert seen.setdefault(said, step.shown) == step.shown
            said += (step.token,)
    assert len(seen) < 4 * 6


class Timed(Pace):
    """Counts the calls it learns from."""

    learnt = 0

    def called(self, tokens, seconds):
        self.learnt += 1


async def test_a_draft_at_hand_tells_nothing_of_how_long_a_call_takes():
    pace = Timed()
    total = await cost(PROMPTS[0], "together", Sampling(16, 1.0), 0.0, 8, pace)
    assert pace.learnt == total["calls"]
