"""The scriptable upstream keeps its word: others' tests lean on it."""

import math
from collections import Counter
from contextlib import aclosing

import numpy as np
import pytest
from scipy import stats

from adapter.candidates import END
from adapter.prefix import Prefix
from tests.adapter.upstream.vocabularies import Allowed
from tests.support.synthetic import Synthetic, vocabulary_of_size, vocabulary_of_words

SMALL = vocabulary_of_words(b"a", b"b", b"ab", b"\xc3", b"\xa9", b" c", b"d")
START = Prefix.of([1, 2, 3])


def test_the_vocabulary_spells_text() -> None:
    assert SMALL.decode(SMALL.encode("abé ad".encode())) == b"ab\xc3\xa9ad"
    assert vocabulary_of_size(300).decode([299]).startswith(b"w")
    assert [len(vocabulary_of_size(n).tokens) for n in (8, 50, 300)] == [8, 50, 300]


async def test_shows_its_distribution_to_the_last_token() -> None:
    upstream = Synthetic(SMALL)
    draft = await upstream.draft(START, 1, Allowed())
    (position,) = draft.positions
    row = upstream.logprobs(START.ids)
    assert {c.id: c.logprob for c in position.candidates} == dict(enumerate(row))
    assert math.fsum(np.exp(row)) == pytest.approx(1, abs=1e-12)
    assert position.hidden == 0.0
    assert position.drafted == position.candidates[0]


async def test_top_k_is_the_head_of_it() -> None:
    whole = (await Synthetic(SMALL).draft(START, 1, Allowed())).positions[0]
    (few,) = (await Synthetic(SMALL, k=3).draft(START, 1, Allowed())).positions
    assert few.candidates == whole.candidates[:3]
    assert few.floor == few.candidates[-1].logprob
    assert few.hidden == pytest.approx(1 - sum(math.exp(c.logprob) for c in few.candidates))


async def test_a_run_is_one_position_after_the_other() -> None:
    upstream, prefix = Synthetic(SMALL, end_logit=-50), START
    run = await upstream.draft(prefix, 6, Allowed())
    assert (len(run.positions), run.finish_reason) == (6, "length")
    for position in run.positions:
        assert (await upstream.draft(prefix, 1, Allowed())).positions == (position,)
        prefix = prefix.extend(position.drafted)
    assert upstream.calls == 7
    assert upstream.billed == sum((3, 6)) + sum(3 + j + 1 for j in range(6))


@pytest.mark.parametrize("visible", [True, False])
async def test_end_is_shown_or_hidden(visible: bool) -> None:
    upstream = Synthetic(SMALL, end_logit=9, end_visible=visible)
    draft = await upstream.draft(START, 4, Allowed())
    assert draft.finish_reason == "stop"
    assert [p.drafted.special for p in draft.positions] == [END] * visible
    mild = Synthetic(SMALL, end_logit=-1, end_visible=visible)
    (position, *_) = (await mild.draft(START, 1, Allowed())).positions
    assert any(c.special == END for c in position.candidates) == visible
    assert (position.floor == 0.0) == (not visible)


async def drawn(upstream: Synthetic, count: int) -> Counter[int]:
    runs = [await upstream.draft(START, 1, Allowed(), sampled=True) for _ in range(count)]
    return Counter(run.positions[0].drafted.id for run in runs)


async def p_value(upstream: Synthetic) -> float:
    seen, chances = await drawn(upstream, 4000), np.exp(upstream.logprobs(START.ids))
    return stats.chisquare([seen[i] for i in range(len(chances))], chances * 4000).pvalue


async def test_samples_what_it_shows_and_a_wrong_temperature_is_seen() -> None:
    assert await p_value(Synthetic(SMALL, k=2, sharpness=1)) > 1e-4
    assert await p_value(Synthetic(SMALL, k=2, sharpness=1, temperature=0.7)) < 1e-9


async def test_a_sampled_token_beyond_k_is_appended_only_by_the_canary() -> None:
    for appends in (False, True):
        upstream = Synthetic(SMALL, k=2, sharpness=0.5, appends=appends)
        runs = [await upstream.draft(START, 1, Allowed(), sampled=True) for _ in range(50)]
        lengths = {len(run.positions[0].candidates) for run in runs}
        assert lengths == ({2, 3} if appends else {2})
        outside = [r for r in runs if r.positions[0].drafted not in r.positions[0].candidates]
        assert bool(outside) != appends


async def test_pieces_are_the_run_and_a_closed_stream_costs_what_came() -> None:
    upstream = Synthetic(SMALL, end_logit=-50)
    run = await upstream.draft(START, 9, Allowed())
    before = upstream.billed
    seen = []
    async with aclosing(upstream.stream(START, 9, Allowed())) as pieces:
        async for piece in pieces:
            seen += piece.positions
            if len(seen) == 4:
                break
    assert tuple(seen) == run.positions[:4]
    assert (upstream.billed - before, upstream.cuts) == (3 + 4, 1)


async def test_scores_any_token() -> None:
    upstream = Synthetic(SMALL, k=1)
    scores, usage = await upstream.score(START, [5, 0, 99], Allowed())
    row = upstream.logprobs(START.ids)
    assert scores == {5: row[5], 0: row[0]}
    assert (usage.calls, usage.prompt_tokens, upstream.calls) == (1, 3, 1)
