"""Any length of draft, cache or crowd: the same steps as one token at a time, to the last bit."""

import asyncio
from dataclasses import replace
from itertools import cycle

import pytest

from adapter.errors import ContextTooLong
from adapter.request import Sampling
from adapter.upstream.cached import CachedUpstream
from cache import MemoryCache
from tests.support.crowd import crowd
from tests.support.forgetful import Forgetful
from tests.support.generations import generation, run
from tests.support.synthetic import Synthetic, vocabulary_of_size
from tests.support.synthetic_pair import SyntheticReader

SIZE = 48
VOCABULARY = vocabulary_of_size(SIZE)
LOOKAHEADS = (2, 3, 8, 16, 64, "auto", "stream")
TOKENS = 10
SAMPLINGS = {
    "greedy": Sampling(max_tokens=TOKENS, temperature=0.0),
    "seeded": Sampling(max_tokens=TOKENS, temperature=1.0, seed=3),
    "cold, top_p": Sampling(max_tokens=TOKENS, temperature=0.7, top_p=0.8, seed=4),
    "penalties": Sampling(
        max_tokens=TOKENS, temperature=0.0, presence_penalty=0.5, frequency_penalty=0.7
    ),
    "biases": Sampling(max_tokens=TOKENS, temperature=1.0, seed=5, logit_bias={3: -100, 9: -2.0}),
    "stops": Sampling(max_tokens=TOKENS, temperature=1.0, seed=6, stop=("ab", "w1", "é")),
}


def upstream(**changes):
    return Synthetic(VOCABULARY, **({"k": 6, "seed": 1} | changes))


async def answer(inner, prompt, sampling, lookahead, **changes):
    """Every step and the ending, without what may differ: where positions came from, and cost."""
    fields = {"alpha": 1.0, "seed": sampling.seed or 0} | changes
    reader = SyntheticReader(prompt, SIZE, strength=0.7)
    one = generation(
        prompt,
        vocabulary=VOCABULARY,
        sampling=sampling,
        reader=reader,
        lookahead=lookahead,
        shown=3,
        **fields,
    )
    steps, ending = await run(inner, one)
    return [replace(step, source="") for step in steps], replace(ending, usage=None)


def prompts(count):
    return [(2 + i % 40, 3 + i // 40, 5) for i in range(count)]


async def count_equal(cases, **changes):
    """How many answers were compared, and how many tokens they had; each must be its twin's."""
    tokens = 0
    for prompt, sampling, lookahead in cases:
        expected = await answer(upstream(**changes), prompt, sampling, 1)
        found = await answer(upstream(**changes), prompt, sampling, lookahead)
        assert found == expected, (prompt, sampling, lookahead)
        tokens += len(expected[0])
    return tokens


async def test_252_prompts_whatever_the_draft_and_the_draw():
    """Each way six times; 1000 times each with FULL=1."""
    ways = cycle((s, n) for s in SAMPLINGS.values() for n in LOOKAHEADS)
    cases = [(prompt, *next(ways)) for prompt in prompts(252)]
    assert await count_equal(cases) > 1250


@pytest.mark.parametrize("hidden", [{"end_visible": False}, {"k": 1}, {"k": None}])
async def test_whatever_the_upstream_shows(hidden):
    ways = cycle((s, n) for s in SAMPLINGS.values() for n in LOOKAHEADS)
    assert await count_equal([(p, *next(ways)) for p in prompts(84)], **hidden) > 400


@pytest.mark.full
@pytest.mark.parametrize("sampling", SAMPLINGS.values(), ids=SAMPLINGS)
@pytest.mark.parametrize("lookahead", LOOKAHEADS)
async def test_1000_prompts_of_every_kind(sampling, lookahead):
    assert await count_equal([(p, sampling, lookahead) for p in prompts(1000)]) > 4000


@pytest.mark.parametrize("lookahead", LOOKAHEADS)
async def test_16_at_once_with_one_cache(lookahead):
    """Answers to equal prompts find each other's runs, whole or in part."""
    asked = [prompts(12)[i % 12] for i in range(48)]
    for sampling in (SAMPLINGS["greedy"], SAMPLINGS["seeded"]):
        expected = [await answer(upstream(), prompt, sampling, 1) for prompt in asked]
        shared = CachedUpstream(upstream(latency=1e-4), MemoryCache(10**7, 60.0))

        async def one(prompt, sampling=sampling, shared=shared):
            return await answer(shared, prompt, sampling, lookahead)

        assert await crowd(one, asked) == expected


@pytest.mark.parametrize("lost", ["none", "half", "all"])
async def test_a_cache_that_is_cold_warm_or_lost_half_way(lost):
    for sampling in SAMPLINGS.values():
        expected = await answer(upstream(), (7, 7, 5), sampling, 1)
        shared = CachedUpstream(upstream(), Forgetful(lost))
        for lookahead in (16, 1, 3, "stream", "auto"):
            assert await answer(shared, (7, 7, 5), sampling, lookahead) == expected


async def test_expansion_is_the_same_for_every_length():
    for sampling in (SAMPLINGS["greedy"], SAMPLINGS["seeded"]):
        for prompt in prompts(20):
            expected = await answer(upstream(k=3), prompt, sampling, 1, expand=8)
            for lookahead in LOOKAHEADS:
                found = await answer(upstream(k=3), prompt, sampling, lookahead, expand=8)
                assert found == expected


@pytest.mark.parametrize("lookahead", [2, 8, "auto", "stream"])
async def test_a_draft_costs_a_call_for_every_departure_at_most(lookahead):
    """n = 1 pays one call a token; with drafts, a call ends where the text leaves the draft."""
    model, sampling = upstream(), SAMPLINGS["greedy"]
    tokens = departures = 0
    for prompt in prompts(40):
        steps, _ = await answer(model, prompt, sampling, lookahead)
        tokens += len(steps)
        departures += sum(step.rank != 0 for step in steps)
    runs = 40 + departures
    most = runs if lookahead == "stream" else runs + tokens / (2 if lookahead == 2 else 3)
    assert model.calls <= most
    assert model.calls < tokens


async def test_a_stream_is_closed_where_the_text_leaves_it():

    class Slow(Synthetic):
        async def stream(self, *asked):
            async for piece in super().stream(*asked):
                yield piece
                await asyncio.sleep(0.002)

    model = Slow(VOCABULARY, k=6, seed=1)
    long = replace(SAMPLINGS["greedy"], max_tokens=40)
    steps, _ = await answer(model, (2, 2, 5), long, "stream")
    assert 0 < model.cuts <= model.calls
    prompts = sum(3 + at for at in range(len(steps)))  # were each token a call of its own
    assert model.billed < prompts


async def test_a_draft_longer_than_the_window_is_walked_in_parts():
    """The window ends the text where it ends one token at a time, not where a draft would."""

    class Narrow(SyntheticReader):
        async def offsets(self, places):
            if len(places[-1].generated) > 6:
                raise ContextTooLong("the window is over")
            return await super().offsets(places)

    async def told(lookahead):
        one = generation(
            (7, 7, 5),
            vocabulary=VOCABULARY,
            sampling=SAMPLINGS["greedy"],
            reader=Narrow((7, 7, 5), SIZE, strength=0.05),
            alpha=1.0,
            lookahead=lookahead,
        )
        steps, ending = await run(upstream(), one)
        return [s.token for s in steps], ending.finish_reason

    expected = await told(1)
    assert (len(expected[0]), expected[1]) == (7, "length")
    for lookahead in LOOKAHEADS:
        assert await told(lookahead) == expected
