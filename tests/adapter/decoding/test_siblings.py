"""What four choices of one request cost: how much of it a request for n choices could save."""

from collections import Counter

import pytest

from adapter.decoding import Frozen
from adapter.request import Sampling
from tests.support.generations import generation, run
from tests.support.synthetic import Synthetic, vocabulary_of_size
from tests.support.synthetic_pair import SyntheticReader

VOCABULARY = vocabulary_of_size(48)
PROMPTS = [tuple(2 + (i * j + j) % 40 for i in range(100)) for j in range(1, 6)]
LENGTH = len(PROMPTS[0])
SPARED = 3 * len(PROMPTS)
"""Calls that asking for all four choices at once could save, at the prompts themselves."""


async def cost(prompt, shared, sampling, alpha, lookahead):
    """Calls and billed tokens of four choices; `shared`: they see what each other was shown."""
    upstream = Synthetic(VOCABULARY, k=20, seed=1, end_logit=-20.0, luck=sum(prompt))
    frozen, total = Frozen(upstream), Counter()
    for choice in range(4):
        one = generation(
            prompt,
            vocabulary=VOCABULARY,
            sampling=sampling,
            reader=SyntheticReader(prompt, 48, strength=0.3),
            alpha=alpha,
            choice=choice,
            lookahead=lookahead,
        )
        _, ending = await run(frozen if shared else upstream, one)
        usage = ending.usage
        total += Counter(calls=usage.calls, read=usage.prompt_tokens, made=usage.completion_tokens)
    assert total["calls"] == upstream.calls
    return total


async def costs(shared, alpha=1.0, lookahead=8, **sampling):
    sampling = Sampling(max_tokens=16, **{"temperature": 1.0} | sampling)
    return sum([await cost(p, shared, sampling, alpha, lookahead) for p in PROMPTS], Counter())


async def test_greedy_choices_cost_no_more_than_one():
    four, one = await costs(True, temperature=0.0), await costs(False, temperature=0.0)
    assert {name: 4 * count for name, count in four.items()} == one


@pytest.mark.parametrize("lookahead", [8, "stream"])
@pytest.mark.parametrize("alpha", [0.0, 1.0])
async def test_seeded_choices_already_cost_less_than_asked_for_at_once(alpha, lookahead):
    shared, apart = [await costs(s, alpha, lookahead, seed=3) for s in (True, False)]
    assert shared["calls"] <= apart["calls"] - SPARED
    assert shared["read"] <= apart["read"] - SPARED * LENGTH
    assert shared["made"] < apart["made"]


@pytest.mark.parametrize(("alpha", "share"), [(0.0, 0.3), (1.0, 0.25)])
async def test_free_choices_could_save_their_first_calls_and_no_other(alpha, share):
    shared, apart = [await costs(s, alpha) for s in (True, False)]
    assert share * apart["calls"] > SPARED
    assert shared["calls"] < 1.15 * apart["calls"]
