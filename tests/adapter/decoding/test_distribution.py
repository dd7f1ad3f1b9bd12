"""What comes out follows the adapted distribution, whichever rule and draft it came by.

Each biased variant that looks harmless fails the same test.
"""

import itertools
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from scipy.optimize import brentq
from scipy.stats import chisquare

from adapter.candidates import Usage
from adapter.decoding import Frozen, walk
from adapter.request import Sampling
from adapter.upstream.cached import CachedUpstream
from cache import MemoryCache
from tests.support.generations import generation, run
from tests.support.synthetic import Synthetic, vocabulary_of_words
from tests.support.synthetic_pair import SyntheticReader

VOCABULARY = vocabulary_of_words(b"a", b"b", b"c", b"d", b"e")
SIZE = len(VOCABULARY.tokens)
PROMPT = (1, 2, 3)
K = 3
ALPHA = 1.5
LENGTH = 2
SOUND, BIASED = 1e-3, 1e-5  # p-values

UPSTREAM = Synthetic(VOCABULARY, k=K, seed=8, sharpness=1.0)
READER = SyntheticReader(PROMPT, SIZE, seed=21, strength=1.0)


def target(generated, temperature):
    """The adapted distribution behind some tokens, by the book: Equation 1, the tail imputed.

    The tail has the anti-expert's shape, no token above the floor, and the hidden mass.
    """
    true = UPSTREAM.logprobs((*PROMPT, *generated))
    shown = np.argsort(-true)[:K]
    hidden = np.setdiff1d(np.arange(SIZE), shown)
    mass, floor = 1.0 - np.exp(true[shown]).sum(), true[shown].min()
    anti, upstream = READER.anti(generated), true.copy()
    if mass < len(hidden) * np.exp(floor):
        shift = brentq(
            lambda c: np.exp(np.minimum(floor, anti[hidden] + c)).sum() - mass, -50, 50, xtol=1e-14
        )
        upstream[hidden] = np.minimum(floor, anti[hidden] + shift)
    else:
        upstream[hidden] = floor
    scores = (upstream + ALPHA * READER.delta(generated)) / temperature
    return np.exp(scores - np.logaddexp.reduce(scores))


def texts(temperature):
    """Every text of LENGTH tokens, or ended before, with its probability."""
    found = {}
    for text in itertools.product(range(SIZE), repeat=LENGTH):
        end = text.index(0) + 1 if 0 in text else LENGTH
        ps = [target(text[:i], temperature)[text[i]] for i in range(end)]
        found[text[:end]] = float(np.prod(ps))
    assert sum(found.values()) == pytest.approx(1.0)
    return found


async def sample(
    draws, temperature, lookahead, *, upstream=None, frozen=Frozen, seeded=False, choices=1
):
    """Texts generated one after the other, so many of each request."""
    inner = upstream or replace(UPSTREAM, luck=1, _rows={})
    sampling, shared = Sampling(max_tokens=LENGTH, temperature=temperature), None
    counts = dict.fromkeys(texts(temperature), 0)
    for number in range(draws):
        seed, choice = divmod(number, choices)
        shared = shared if choice else frozen(inner)
        asked = replace(sampling, seed=seed) if seeded else sampling
        one = generation(
            PROMPT,
            vocabulary=VOCABULARY,
            sampling=asked,
            reader=READER,
            alpha=ALPHA,
            lookahead=lookahead,
            seed=seed,
            choice=choice,
            choices=choices,
        )
        steps, _ = await run(shared, one)
        counts[tuple(VOCABULARY.id_of(s.token) or 0 for s in steps)] += 1
    return counts


def p_value(counts, temperature):
    expected = texts(temperature)
    total = sum(counts.values())
    rare = [text for text, p in expected.items() if p * total < 8]
    pairs = [(counts[t], p * total) for t, p in expected.items() if t not in rare]
    if rare:
        pairs.append((sum(counts[t] for t in rare), sum(expected[t] for t in rare) * total))
    seen, wanted = zip(*pairs, strict=True)
    return chisquare(seen, wanted).pvalue


CELLS = [*itertools.product([True, False], [1, 2, 3], [1.0, 0.7], [False, True])]
CELLS += [(False, "stream", 1.0, False), (False, "auto", 0.7, False)]
MANY = [(False, n, t, False) for n in (1, 2, 3) for t in (1.0, 0.7)]  # rejection
MANY += [(True, 2, 1.0, False), (True, 3, 0.7, False), (False, 3, 1.0, True), (True, 3, 0.7, True)]


@pytest.mark.parametrize(("seeded", "lookahead", "temperature", "cached"), CELLS)
async def test_match_and_rejection_follow_the_target(seeded, lookahead, temperature, cached):
    await follows_the_target(seeded, lookahead, temperature, cached, draws=2500)


@pytest.mark.parametrize("cached", [False, True])
@pytest.mark.parametrize(("lookahead", "temperature"), [(2, 1.0), (3, 0.7)])
async def test_choices_drawn_together_follow_the_target(lookahead, temperature, cached):
    inner = replace(UPSTREAM, luck=lookahead, several=True, _rows={})
    upstream = CachedUpstream(inner, None) if cached else inner
    counts = await sample(3000, temperature, lookahead, upstream=upstream, choices=3)
    assert p_value(counts, temperature) > SOUND
    assert inner.calls < 3000 * 0.75


@pytest.mark.full
@pytest.mark.parametrize(("seeded", "lookahead", "temperature", "cached"), MANY)
async def test_60000_draws_follow_the_target(seeded, lookahead, temperature, cached):
    await follows_the_target(seeded, lookahead, temperature, cached, draws=60_000)


async def follows_the_target(seeded, lookahead, temperature, cached, draws):
    inner = replace(UPSTREAM, luck=len(str(lookahead)), _rows={})
    upstream = CachedUpstream(inner, MemoryCache(10**7, 600.0)) if cached else inner
    counts = await sample(draws, temperature, lookahead, upstream=upstream, seeded=seeded)
    assert p_value(counts, temperature) > SOUND


class AlwaysFresh(Frozen):
    """Says of every draft that it was drawn just now, for this text alone."""

    async def drafts(self, prefix, ask, budget):
        async with aclosing(super().drafts(prefix, ask, budget)) as drafts:
            async for draft in drafts:
                yield replace(draft, source="upstream")


class OnlyShown(Frozen):
    """Asks again where the drafted token is none of those shown: a step redone for its sample."""

    async def drafts(self, prefix, ask, budget):
        while True:
            draft = await self._upstream.draft(prefix, ask.n, budget, ask.sampled)
            first = draft.positions[0]
            if first.drafted in first.candidates:
                yield draft
                return


CANARIES = {
    "the drafted token a candidate beyond the top-k": {"upstream": {"appends": True}},
    "a source of another temperature": {"upstream": {"temperature": 0.5}},
    "a step redone because of what was sampled": {"frozen": OnlyShown},
    "a reused sample": {"frozen": AlwaysFresh, "cached": True},
}


@pytest.mark.parametrize("name", CANARIES)
async def test_what_looks_harmless_is_caught(name):
    changes = dict(CANARIES[name])
    inner = replace(UPSTREAM, luck=5, _rows={}, **changes.pop("upstream", {}))
    cached = changes.pop("cached", False)
    upstream = CachedUpstream(inner, MemoryCache(10**7, 600.0)) if cached else inner
    counts = await sample(6000, 1.0, 2, upstream=upstream, **changes)
    assert p_value(counts, 1.0) < BIASED


class DrawnOnce(Synthetic):
    """Gives every choice of a request the same draft."""

    async def draws(self, prefix, n, budget, choices):
        (first,) = await super().draws(prefix, n, budget, 1)
        return (first, *[replace(first, usage=Usage())] * (choices - 1))


async def pairs_of_choices(frozen, draws, inner=UPSTREAM):
    """How often two choices of one request begin with each pair of tokens."""
    inner = replace(inner, luck=6, _rows={})
    counts = np.zeros((SIZE, SIZE))
    for seed in range(draws):
        shared, firsts = frozen(inner), []
        for choice in range(2):
            one = generation(
                PROMPT,
                vocabulary=VOCABULARY,
                sampling=Sampling(max_tokens=1, temperature=1.0),
                reader=READER,
                alpha=ALPHA,
                lookahead=1,
                seed=seed,
                choice=choice,
                choices=2,
            )
            steps, _ = await run(shared, one)
            firsts.append(VOCABULARY.id_of(steps[0].token) or 0)
        counts[tuple(firsts)] += 1
    expected = np.outer(target((), 1.0), target((), 1.0)) * draws
    return chisquare(counts.ravel(), expected.ravel()).pvalue


async def test_choices_of_one_request_are_independent():
    assert await pairs_of_choices(Frozen, 3000) > SOUND


async def test_choices_drawn_together_are_independent():
    assert await pairs_of_choices(Frozen, 3000, replace(UPSTREAM, several=True)) > SOUND


async def test_a_draft_that_is_given_to_every_choice_is_caught():
    once = DrawnOnce(VOCABULARY, k=K, seed=8, sharpness=1.0, several=True)
    assert await pairs_of_choices(Frozen, 3000, once) < BIASED


async def test_siblings_that_share_a_draft_by_rejection_are_caught():
    assert await pairs_of_choices(AlwaysFresh, 3000) < BIASED


def test_rejection_is_what_free_sampling_uses():
    """Else the cells above would all test the match rule."""
    sampling = Sampling(temperature=1.0)
    frozen = Frozen(UPSTREAM)
    for seed, rejects in ((None, True), (1, False)):
        one = generation(PROMPT, vocabulary=VOCABULARY, sampling=replace(sampling, seed=seed))
        assert walk.Walk(frozen, one, budget=None)._rejects is rejects
