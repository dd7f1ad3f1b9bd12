"""Prefixes of text: the same steps whatever the draft, the cache or the crowd, to the last bit."""

import asyncio
from collections import Counter
from dataclasses import replace
from itertools import cycle

import pytest

from adapter.request import Sampling
from adapter.upstream.cached import CachedUpstream
from adapter.upstream.lexicon import Lexicon
from adapter.upstream.spelling import Spelling
from adapter.upstream.texts import TextUpstream
from cache import MemoryCache
from tests.support.generations import generation, run
from tests.support.synthetic_pair import SyntheticReader
from tests.support.synthetic_text import VOCABULARY, Broken, SyntheticSpeaker

SIZE = len(VOCABULARY.tokens)
LOOKAHEADS = (2, 3, 8, 16, "auto", "stream")
TOKENS = 12
SAMPLINGS = {
    "greedy": Sampling(max_tokens=TOKENS, temperature=0.0),
    "seeded": Sampling(max_tokens=TOKENS, temperature=1.0, seed=3),
    "cold": Sampling(max_tokens=TOKENS, temperature=0.7, top_p=0.9, seed=4),
}
LEXICON = Lexicon(VOCABULARY, Spelling(VOCABULARY))


def speaker(**changes):
    fields = {"k": 8, "seed": 1, "sharpness": 1.5, "end_logit": -1.0} | changes
    return SyntheticSpeaker(Broken(VOCABULARY, **fields))


def upstream(**changes):
    return TextUpstream(speaker(**changes), VOCABULARY)


def prompts(count):
    return [f"{'abcdefgh'[i % 8]}{'cafe'[i // 8 % 4]} {i // 32}東" for i in range(count)]


async def answer(inner, prompt, sampling, lookahead, **changes):
    """Every step and the ending, without what may differ: where positions came from, and cost."""
    reader = SyntheticReader(VOCABULARY.encode(prompt.encode()), SIZE, strength=0.3)
    fields = {"alpha": 1.0, "seed": sampling.seed or 0, "shown": 3} | changes
    one = generation(
        prompt, lexicon=LEXICON, sampling=sampling, reader=reader, lookahead=lookahead, **fields
    )
    steps, ending = await run(inner, one)
    return [replace(step, source="") for step in steps], replace(ending, usage=None)


async def flags_where_equal(cases):
    """What the steps say of themselves; each answer must be its twin's, drafted one by one."""
    flags = Counter()
    for prompt, sampling, lookahead in cases:
        expected = await answer(upstream(), prompt, sampling, 1)
        assert await answer(upstream(), prompt, sampling, lookahead) == expected, (
            prompt,
            sampling,
            lookahead,
        )
        flags.update(flag for step in expected[0] for flag in step.flags)
        flags["steps"] += len(expected[0])
        flags["inside"] += sum(not whole(step.token) for step in expected[0])
    return flags


def whole(token):
    try:
        return bool(token.decode()) or True
    except UnicodeDecodeError:
        return False


async def test_252_prompts_whatever_the_draft_and_the_draw():
    ways = cycle((s, n) for s in SAMPLINGS.values() for n in LOOKAHEADS)
    flags = await flags_where_equal([(prompt, *next(ways)) for prompt in prompts(252)])
    print(flags)
    assert flags["steps"] > 1500
    assert flags["retokenised"] > 100
    assert flags["masked"] > 100
    assert flags["inside"] > 100
