"""The prefix cache in front of an upstream."""

import asyncio
import random
import time
from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing
from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.budget import Budget
from adapter.candidates import END, Candidate, Draft, Usage, make_position
from adapter.errors import UpstreamUnavailable
from adapter.prefix import Prefix
from adapter.upstream.cached import CachedUpstream
from adapter.upstream.capabilities import COMPLETIONS
from adapter.upstream.lookups import Lookups
from adapter.upstream.runs import LARGEST, dump_run, dump_scores, load_run, load_scores
from adapter.upstream.upstream import Allowance, Upstream
from cache import Keys, MemoryCache
from tests.adapter.upstream.vocabularies import Allowed, thorough
from tests.conftest import Measured
from tests.support.counts import count
from tests.support.synthetic import Synthetic, vocabulary_of_size

A, B = Candidate(b"a", -0.5, 99), Candidate(b"\xe3", -1.5, 7)
RUN = Draft(
    (make_position([A, B], A), make_position([Candidate(b"", -0.1, 0, END)], None)),
    "length",
    Usage(1, 5, 0, 2),
)
PREFIX = Prefix.of([1, 2, 3])


class Fixed:
    """An upstream that always says the same and counts how often it was asked."""

    capabilities = COMPLETIONS

    def __init__(self, draft: Draft = RUN, identity: tuple[str, ...] = ("here", "m")) -> None:
        self.identity = identity
        self.asked = 0
        self.closed = False
        self._draft = draft

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        async with budget.call(len(prefix.ids), n):
            self.asked += 1
        return self._draft

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        yield await self.draft(prefix, n, budget, sampled)

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        raise NotImplementedError

    async def close(self) -> None:
        self.closed = True


def cached(inner: Upstream, cache: MemoryCache | None, keys: Keys | None = None) -> CachedUpstream:
    return CachedUpstream(inner, cache, keys)


async def test_asks_once_and_then_reads_for_free() -> None:
    inner, budget = Fixed(), Allowed()
    upstream = cached(inner, MemoryCache(10**6, 60))
    fresh = await upstream.draft(PREFIX, 2, budget)
    again = await upstream.draft(PREFIX, 2, budget)
    assert fresh == RUN
    assert (again.positions, again.finish_reason) == (RUN.positions, RUN.finish_reason)
    assert (again.source, again.usage) == ("cache", Usage())
    assert inner.asked == budget.taken == 1


async def test_runs_drawn_together_are_kept_each_where_it_leaves_the_others() -> None:
    """All that is kept is what the upstream shows there, and one alone stands at the prompt."""
    vocabulary = vocabulary_of_size(24)
    for luck in range(20):
        inner = Synthetic(vocabulary, k=5, luck=luck, end_logit=-9.0, sharpness=1.0, several=True)
        upstream, budget = CachedUpstream(inner, MemoryCache(10**7, 60)), Budget(99)
        runs = await upstream.draws(PREFIX, 6, budget, 4)
        assert (len(runs), inner.calls) == (4, 1)
        assert upstream.lookups == Lookups(misses=1)
        (again,) = await upstream.for_request().draws(PREFIX, 6, budget, 4)
        assert (again.positions, again.source) == (runs[0].positions, "cache")
        for run in runs:
            reader, at, here = upstream.for_request(), 0, PREFIX
            while at < len(run.positions):
                draft = await reader.draft(here, 9, budget)
                assert (draft.source, draft.usage) == ("cache", Usage())
                for position in draft.positions:
                    own = run.positions[at]
                    assert position.candidates == own.candidates
                    assert [c.logprob for c in position.candidates] == [
                        inner.logprobs(here.ids)[c.id] for c in position.candidates
                    ]
                    here, at = here.extend(own.drafted), at + 1
                    if position.drafted != own.drafted:
                        break
        assert inner.calls == 1


async def test_who_joins_a_call_for_several_takes_one_and_none_as_his_own() -> None:
    inner = Synthetic(vocabulary_of_size(24), k=5, latency=0.05, several=True)
    upstream = CachedUpstream(inner, MemoryCache(10**7, 60))
    asked = [upstream.for_request().draws(PREFIX, 6, Budget(9), 3) for _ in range(2)]
    mine, theirs = await asyncio.gather(*asked)
    assert [len(mine), len(theirs), inner.calls] == [3, 1, 1]
    assert (theirs[0].source, theirs[0].usage) == ("cache", Usage())
    assert [draft.source for draft in mine] == ["upstream"] * 3


async def test_a_longer_run_serves_shorter_ones() -> None:
    upstream = cached(Fixed(), MemoryCache(10**6, 60))
    await upstream.draft(PREFIX, 2, Allowed())
    short = await upstream.draft(PREFIX, 1, Allowed())
    assert (short.positions, short.finish_reason) == (RUN.positions[:1], None)


async def test_a_run_is_read_once_however_short_the_drafts() -> None:
    inner, cache = endless(), Watched()
    shared = CachedUpstream(inner, cache)
    run = await shared.for_request().draft(PREFIX, 7, Allowed())
    reader, at = shared.for_request(), 0
    for n in (2, 1, 3, 9):
        here = behind(PREFIX, run, at)
        draft = await reader.draft(here, n, Allowed())
        assert (draft.positions, draft.source) == (run.positions[at : at + n], "cache")
        at += len(draft.positions)
    assert (at, draft.finish_reason) == (7, run.finish_reason)
    assert (inner.calls, cache.reads) == (1, 2)
    streaming = shared.for_request()
    await streaming.draft(PREFIX, 3, Allowed())
    pieces = [piece async for piece in streaming.stream(behind(PREFIX, run, 3), 9, Allowed())]
    assert pieces == [Draft(run.positions[3:], run.finish_reason, Usage(), source="cache")]
    assert (inner.calls, cache.reads, streaming.lookups) == (1, 3, Lookups(hits=1))


async def test_prefixes_and_upstreams_are_kept_apart() -> None:
    cache, keys = MemoryCache(10**6, 60), Keys()
    one, two = Fixed(), Fixed(identity=("her", "em"))
    await cached(one, cache, keys).draft(PREFIX, 1, Allowed())
    await cached(one, cache, keys).draft(Prefix.of([1, 2]), 1, Allowed())
    await cached(two, cache, keys).draft(PREFIX, 1, Allowed())
    assert (one.asked, two.asked, len(cache)) == (2, 1, 3)


async def test_equal_upstreams_of_a_process_share() -> None:
    cache, one, two = MemoryCache(10**6, 60), Fixed(), Fixed()
    await cached(one, cache).draft(PREFIX, 1, Allowed())
    await cached(two, cache).draft(PREFIX, 1, Allowed())
    assert (one.asked, two.asked) == (1, 0)


async def test_without_a_cache_it_asks_each_time() -> None:
    inner = Fixed()
    upstream = cached(inner, None)
    for _ in range(2):
        assert await upstream.draft(PREFIX, 1, Allowed()) == RUN
    assert inner.asked == 2


class Tampered(MemoryCache):
    """A cache that gives back what somebody else has written."""

    async def get(self, key: bytes) -> bytes | None:
        value = await super().get(key)
        return None if value is None else value[:-1] + bytes([value[-1] ^ 1])


async def test_a_tampered_entry_is_asked_for_again() -> None:
    inner = Fixed()
    upstream = cached(inner, Tampered(10**6, 60))
    for _ in range(2):
        assert (await upstream.draft(PREFIX, 1, Allowed())).source == "upstream"
    assert inner.asked == 2


async def test_is_the_upstream_to_everybody_else() -> None:
    inner = Fixed()
    upstream = cached(inner, None)
    assert upstream.identity == inner.identity
    assert upstream.capabilities is inner.capabilities
    await upstream.close()
    assert inner.closed


class Watched(MemoryCache):
    """A cache that counts what it is asked, and what it is given."""

    def __init__(self) -> None:
        super().__init__(10**8, 60)
        self.reads = 0
        self.sizes: list[int] = []
        self.places: list[bytes] = []
        self.lost: bytes | None = None

    async def get(self, key: bytes) -> bytes | None:
        self.reads += 1
        return None if key == self.lost else await super().get(key)

    async def put(self, key: bytes, value: bytes) -> None:
        self.sizes.append(len(value))
        self.places.append(key)
        await super().put(key, value)


def endless(size: int = 9, **options) -> Synthetic:
    return Synthetic(vocabulary_of_size(size), end_logit=-50, **options)


def behind(prefix: Prefix, run: Draft, count: int) -> Prefix:
    for position in run.positions[:count]:
        prefix = prefix.extend(position.drafted)
    return prefix


async def test_sampled_and_greedy_runs_share_their_entries() -> None:
    inner, cache = endless(k=3), Watched()
    upstream = cached(inner, cache)
    fresh = await upstream.draft(PREFIX, 6, Allowed(), sampled=True)
    greedy = await upstream.draft(PREFIX, 6, Allowed())
    assert (fresh.source, greedy.source) == ("upstream", "cache")
    assert greedy.positions == fresh.positions
    assert (inner.calls, cache.reads) == (1, 2)


async def test_a_stream_is_stored_and_read_as_one_piece() -> None:
    inner, cache = endless(), Watched()
    upstream = cached(inner, cache)
    pieces = [piece async for piece in upstream.stream(PREFIX, 6, Allowed())]
    again = [piece async for piece in upstream.stream(PREFIX, 6, Allowed())]
    positions = tuple(position for piece in pieces for position in piece.positions)
    assert len(pieces) == len(positions) == 6
    assert again == [Draft(positions, "length", Usage(), source="cache")]
    assert await upstream.draft(PREFIX, 6, Allowed()) == again[0]
    assert (inner.calls, cache.reads, len(cache.sizes)) == (1, 3, 1)


async def test_a_stream_closed_early_stores_what_came() -> None:
    inner, cache = endless(), Watched()
    upstream = cached(inner, cache)
    whole = await inner.draft(PREFIX, 9, Allowed())
    async with aclosing(upstream.stream(PREFIX, 9, Allowed())) as pieces:
        for _ in range(3):
            await anext(pieces)
    assert inner.cuts == 1
    stored = await upstream.draft(PREFIX, 9, Allowed())
    assert stored == Draft(whole.positions[:3], None, Usage(), source="cache")


class Breaking(Synthetic):
    """An upstream whose streams break off behind the second piece."""

    async def stream(self, prefix, n, budget, sampled=False):
        at = 0
        async for piece in super().stream(prefix, n, budget, sampled):
            if at == 2:
                raise UpstreamUnavailable("broken")
            at += 1
            yield piece


async def test_a_stream_that_breaks_stores_what_came() -> None:
    cache = Watched()
    upstream = cached(Breaking(vocabulary_of_size(9), end_logit=-50), cache)
    with pytest.raises(UpstreamUnavailable):
        [piece async for piece in upstream.stream(PREFIX, 9, Allowed())]
    stored = await upstream.draft(PREFIX, 9, Allowed())
    assert (len(stored.positions), stored.finish_reason, stored.source) == (2, None, "cache")


async def test_a_stream_without_a_piece_stores_nothing() -> None:
    cache = Watched()
    upstream = cached(endless(), cache)
    with pytest.raises(Exception, match="no call is left"):
        [piece async for piece in upstream.stream(PREFIX, 9, Allowed(0))]
    assert cache.sizes == []


async def test_a_hidden_end_is_stored() -> None:
    inner = Synthetic(vocabulary_of_size(9), end_logit=9, end_visible=False)
    upstream = cached(inner, Watched())
    for _ in range(2):
        pieces = [piece async for piece in upstream.stream(PREFIX, 9, Allowed())]
        assert [(p.positions, p.finish_reason) for p in pieces] == [((), "stop")]
    assert inner.calls == 1


async def test_long_runs_are_stored_in_parts_each_at_its_own_prefix() -> None:
    inner, cache = endless(), Watched()
    upstream = cached(inner, cache)
    run = await upstream.draft(PREFIX, 70, Allowed())
    assert len(cache.sizes) == 3
    parts = [await upstream.draft(behind(PREFIX, run, at), 99, Allowed()) for at in (0, 32, 64)]
    assert [part.source for part in parts] == ["cache"] * 3
    assert [part.finish_reason for part in parts] == [None, None, "length"]
    assert tuple(p for part in parts for p in part.positions) == run.positions
    assert [len(part.positions) for part in parts] == [32, 32, 6]
    assert inner.calls == 1


async def test_large_runs_are_stored_in_smaller_parts() -> None:
    inner, cache = endless(1000), Watched()
    upstream = cached(inner, cache)
    run = await upstream.draft(PREFIX, 32, Allowed())
    assert len(cache.sizes) > 2
    assert max(cache.sizes) <= LARGEST + 200
    at = 0
    while at < 32:
        part = await upstream.draft(behind(PREFIX, run, at), 32, Allowed())
        assert part.source == "cache"
        assert part.positions == run.positions[at : at + len(part.positions)]
        at += len(part.positions)
    assert (at, inner.calls) == (32, 1)


async def test_a_position_larger_than_an_entry_is_stored_alone() -> None:
    inner, cache = endless(8000), Watched()
    upstream = cached(inner, cache)
    run = await upstream.draft(PREFIX, 2, Allowed())
    assert len(cache.sizes) == 2
    assert min(cache.sizes) > LARGEST
    second = await upstream.draft(behind(PREFIX, run, 1), 2, Allowed())
    assert (second.positions, second.source) == (run.positions[1:], "cache")


async def test_a_run_ends_in_the_cache_where_its_tokens_have_no_id() -> None:
    nameless = make_position([Candidate(b"a", -0.5), B], Candidate(b"a", -0.5))
    inner, cache = Fixed(Draft((nameless,) * 40, "length", Usage())), Watched()
    await cached(inner, cache).draft(PREFIX, 40, Allowed())
    assert len(cache.sizes) == 1
    assert len((await cached(inner, cache).draft(PREFIX, 40, Allowed())).positions) == 32


async def test_scores_have_entries_of_their_own_and_only_new_ones_are_asked_for() -> None:
    inner, cache, budget = endless(k=1), Watched(), Allowed()
    upstream = cached(inner, cache)
    before = await upstream.draft(PREFIX, 1, budget)
    truth = inner.logprobs(PREFIX.ids)
    assert await upstream.score(PREFIX, [2, 3], budget) == (
        {2: truth[2], 3: truth[3]},
        Usage(1, 3, 0, 1),
    )
    again = await upstream.score(PREFIX, [3, 2], budget)
    assert again == ({2: truth[2], 3: truth[3]}, Usage())
    more, _ = await upstream.score(PREFIX, [3, 4, 99], budget)
    assert more == {3: truth[3], 4: truth[4]}
    assert await upstream.score(PREFIX, [2, 4, 99], budget) == (
        {2: truth[2], 4: truth[4]},
        Usage(),
    )
    assert (inner.calls, budget.taken, cache.reads) == (3, 3, 5)
    assert (await upstream.draft(PREFIX, 1, budget)).positions == before.positions


async def test_without_a_cache_scores_and_streams_are_asked_for_each_time() -> None:
    inner = endless()
    upstream = cached(inner, None)
    for _ in range(2):
        assert len((await upstream.score(PREFIX, [2], Allowed()))[0]) == 1
        assert len([piece async for piece in upstream.stream(PREFIX, 2, Allowed())]) == 2
    assert inner.calls == 4


@given(st.dictionaries(st.integers(0, 10**6), st.one_of(st.none(), st.floats(-900, 0))))
def test_scores_come_back_as_they_were(scores: dict[int, float | None]) -> None:
    assert load_scores(dump_scores(scores)) == scores


candidates = st.builds(
    Candidate,
    st.binary(max_size=4),
    st.floats(-30, -3),
    st.one_of(st.none(), st.integers(0, 9)),
    st.one_of(st.none(), st.just(END)),
)
positions = st.lists(candidates, min_size=1, max_size=5).flatmap(
    lambda shown: st.builds(make_position, st.just(shown), st.one_of(st.none(), candidates))
)


@thorough
@given(st.lists(positions, max_size=3), st.sampled_from([None, "stop", "length"]))
def test_a_run_comes_back_as_it_was(run: list, finish: str | None) -> None:
    draft = Draft(tuple(run), finish, Usage(), source="cache")
    assert load_run(dump_run(draft)) == draft


def test_runs_are_small() -> None:
    shown = [Candidate(b"word%d" % i, -3.0 - i / 7, i) for i in range(20)]
    draft = Draft((make_position(shown, None),), None, Usage())
    assert len(dump_run(draft)) < 1000


def test_what_is_no_number_is_never_stored() -> None:
    draft = Draft((make_position([A], Candidate(b"a", float("nan"), 99)),), None, Usage())
    with pytest.raises(ValueError, match="not JSON compliant"):
        dump_run(draft)


async def test_those_who_ask_at_once_share_one_call_that_the_first_pays() -> None:
    inner, cache = endless(latency=0.01), Watched()
    shared = CachedUpstream(inner, cache)
    requests = [shared.for_request() for _ in range(100)]
    budgets = [Allowed() for _ in requests]
    drafts = await asyncio.gather(
        *(r.draft(PREFIX, 2, b, True) for r, b in zip(requests, budgets, strict=True))
    )
    leader, *others = drafts
    assert (inner.calls, cache.reads, sum(b.taken for b in budgets)) == (1, 1, 1)
    assert (leader.source, leader.usage.calls, budgets[0].taken) == ("upstream", 1, 1)
    assert {(d.source, d.usage) for d in others} == {("cache", Usage())}
    assert {d.positions for d in others} == {leader.positions}
    assert [(r.lookups.hits, r.lookups.misses) for r in requests] == [(0, 1)] + 99 * [(1, 0)]


async def test_who_shares_a_longer_run_gets_what_was_asked_for() -> None:
    inner = endless(latency=0.01)
    upstream = cached(inner, Watched())
    long, short = await asyncio.gather(
        upstream.draft(PREFIX, 6, Allowed()), upstream.draft(PREFIX, 2, Allowed())
    )
    assert (short.positions, short.finish_reason) == (long.positions[:2], None)
    assert inner.calls == 1


async def test_those_who_read_at_once_share_one_read() -> None:
    inner, cache = endless(), Watched()
    upstream = cached(inner, cache)
    await upstream.draft(PREFIX, 2, Allowed())
    drafts = await asyncio.gather(*(upstream.draft(PREFIX, 2, Allowed()) for _ in range(9)))
    assert {d.source for d in drafts} == {"cache"}
    assert (inner.calls, cache.reads) == (1, 2)


async def test_nobody_fails_because_another_has_no_budget() -> None:
    inner = endless(latency=0.01)
    upstream = cached(inner, Watched())
    budgets = [Budget(0), Budget(0), Allowed(1), Budget(0)]
    results = await asyncio.gather(
        *(upstream.draft(PREFIX, 2, budget) for budget in budgets), return_exceptions=True
    )
    kinds = [r.source if isinstance(r, Draft) else type(r).__name__ for r in results]
    assert kinds == ["BudgetExceeded", "BudgetExceeded", "upstream", "cache"]
    assert inner.calls == 1


async def test_a_failing_upstream_fails_all_who_wait_for_it_at_once() -> None:
    class Failing(Fixed):
        async def draft(self, prefix, n, budget, sampled=False):
            self.asked += 1
            await asyncio.sleep(0.01)
            raise UpstreamUnavailable("down")

    inner = Failing()
    upstream = cached(inner, Watched())
    results = await asyncio.gather(
        *(upstream.draft(PREFIX, 2, Allowed()) for _ in range(5)), return_exceptions=True
    )
    assert {type(r) for r in results} == {UpstreamUnavailable}
    assert inner.asked == 1
    with pytest.raises(UpstreamUnavailable):
        await upstream.draft(PREFIX, 2, Allowed())
    assert inner.asked == 2  # a failure is kept nowhere


@thorough
@given(st.integers(1, 4), st.floats(0, 0.004))
async def test_a_cancelled_leader_leaves_nobody_behind(followers: int, after: float) -> None:
    inner = endless(latency=0.002)
    upstream = cached(inner, Watched())
    leader = asyncio.create_task(upstream.draft(PREFIX, 2, Allowed()))
    await asyncio.sleep(0)
    waiting = [asyncio.create_task(upstream.draft(PREFIX, 2, Allowed())) for _ in range(followers)]
    await asyncio.sleep(after)
    leader.cancel()
    async with asyncio.timeout(10):
        drafts = await asyncio.gather(*waiting)
    assert {d.positions for d in drafts} == {drafts[0].positions}
    assert {d.source for d in drafts} == {"cache"}
    assert inner.calls == 1


async def test_who_leaves_alone_ends_the_call() -> None:
    inner = endless(latency=60)
    alone = asyncio.create_task(cached(inner, Watched()).draft(PREFIX, 2, Allowed()))
    await asyncio.sleep(0.01)
    alone.cancel()
    async with asyncio.timeout(10):
        await asyncio.gather(alone, return_exceptions=True)
    assert alone.cancelled()
    assert len(asyncio.all_tasks()) == 1


async def test_scores_are_shared_by_those_who_ask_for_the_same() -> None:
    inner = endless(k=1, latency=0.01)
    shared = CachedUpstream(inner, Watched())
    requests = [shared.for_request() for _ in range(3)]
    scores = await asyncio.gather(
        requests[0].score(PREFIX, [2, 3], Allowed()),
        requests[1].score(PREFIX, [2, 3], Allowed()),
        requests[2].score(PREFIX, [4], Allowed()),
    )
    assert scores[1] == (scores[0][0], Usage())
    assert (inner.calls, [r.lookups.misses for r in requests]) == (2, [1, 0, 1])


async def everything(upstream: CachedUpstream) -> list[str]:
    """Whether a draft, a stream and scores came from the upstream or the cache."""
    draft = await upstream.draft(PREFIX, 2, Allowed())
    behind_it = behind(PREFIX, draft, 1)
    pieces = [piece async for piece in upstream.stream(behind_it, 2, Allowed())]
    _, usage = await upstream.score(PREFIX, [2], Allowed())
    return [draft.source, pieces[0].source, "upstream" if usage.calls else "cache"]


FRESH, KEPT = ["upstream"] * 3, ["cache"] * 3


async def test_no_store_leaves_nothing_and_no_cache_reads_nothing() -> None:
    cache = Watched()
    shared = CachedUpstream(endless(k=1), cache)
    assert await everything(shared.for_request("bypass")) == FRESH
    assert (cache.sizes, cache.reads) == ([], 0)
    assert await everything(shared.for_request("refresh")) == FRESH
    assert (len(cache.sizes), cache.reads) == (3, 0)
    assert await everything(shared.for_request()) == KEPT
    assert cache.reads == 3
    again = shared.for_request("refresh")
    assert await everything(again) == FRESH
    assert (len(cache.sizes), cache.reads, again.lookups.misses) == (6, 3, 3)


async def test_who_may_not_share_asks_alone() -> None:
    inner = endless(latency=0.01)
    shared = CachedUpstream(inner, Watched())
    uses = ("use", "refresh", "bypass", "use")
    drafts = await asyncio.gather(
        *(shared.for_request(use).draft(PREFIX, 2, Allowed()) for use in uses)
    )
    assert [d.source for d in drafts] == ["upstream", "upstream", "upstream", "cache"]
    assert inner.calls == 3


async def test_tenants_share_nothing_neither_entries_nor_calls() -> None:
    inner, cache = endless(latency=0.01), Watched()
    shared = CachedUpstream(inner, cache)
    tenants = (None, "", "a", "b", "a")
    drafts = await asyncio.gather(
        *(shared.for_request("use", t).draft(PREFIX, 2, Allowed()) for t in tenants)
    )
    assert [d.source for d in drafts] == ["upstream"] * 4 + ["cache"]
    assert (inner.calls, len(cache)) == (4, 4)


@pytest.mark.reliability("A5")
def test_keys_of_tenants_never_meet(measured: Measured) -> None:
    shared, many = CachedUpstream(Fixed(), MemoryCache(1, 1)), count(10_000)
    prefixes = [Prefix.of([n]) for n in range(many)]
    one, two = (shared.for_request("use", tenant) for tenant in ("a", "b"))
    keys = {one._key(b"run", p) for p in prefixes} | {two._key(b"run", p) for p in prefixes}
    assert len(keys) == 2 * many
    measured(f"{many:,} prefixes of two tenants", "0 shared keys")


@pytest.mark.reliability("A5")
async def test_the_time_an_answer_takes_does_not_tell_what_another_tenant_asked(
    measured: Measured,
) -> None:
    """The area under the curve of who guesses by the time; 0.5 is chance, and a canary sees 1."""
    many = count(2_000)

    async def timed(who: str, known: str) -> float:
        inner = endless(latency=0.001)
        for n in range(2 * many):
            inner.logprobs((n, 1))  # or it would itself be quicker where it was asked before
        shared = CachedUpstream(inner, MemoryCache(10**9, 3600))
        warm, asker = shared.for_request("use", known), shared.for_request("use", who)
        for n in range(0, 2 * many, 2):
            await warm.draft(Prefix.of([n, 1]), 1, Allowed())
        order = list(range(2 * many))
        random.Random(5).shuffle(order)
        seconds = np.empty(2 * many)
        for n in order:
            begun = time.perf_counter()
            await asker.draft(Prefix.of([n, 1]), 1, Allowed())
            seconds[n] = time.perf_counter() - begun
        cached, fresh = seconds[::2], np.sort(seconds[1::2])
        return float(np.searchsorted(fresh, cached).mean() / many)

    others, own = await timed("b", known="a"), await timed("a", known="a")
    assert own < 0.2
    assert abs(others - 0.5) < 0.2  # at n = 100 chance alone is 0.04
    measured(f"n = {many:,}", f"AUC {others:.3f}", met=0.45 <= others <= 0.55)


async def test_a_text_given_twice_is_asked_once() -> None:
    inner, cache = endless(), MemoryCache(10**7, 60)
    ids, other = [1, *[j % 7 for j in range(100)]], [1, *[j % 5 for j in range(100)]]
    fresh = await CachedUpstream(inner, cache).positions(ids, Allowed())
    reader = CachedUpstream(inner, cache).for_request()
    again = await reader.positions(ids, Allowed())
    assert (again.positions, again.source) == (fresh.positions[:100], "cache")
    assert (again.usage, reader.lookups, inner.calls) == (Usage(), Lookups(hits=1), 1)
    for elsewhere in (other, ids[:-1], ids[1:]):
        calls = inner.calls
        found = await reader.positions(elsewhere, Allowed())
        assert (found.source, inner.calls) == ("upstream", calls + 1)
    hidden = CachedUpstream(inner, cache).for_request(tenant="other")
    assert (await hidden.positions(ids, Allowed())).source == "upstream"


async def test_a_text_of_which_an_entry_is_lost_is_asked_again() -> None:
    inner, cache = endless(), Watched()
    ids = [j % 7 for j in range(100)]
    fresh = await CachedUpstream(inner, cache).positions(ids, Allowed())
    whole = cache.reads
    assert (await CachedUpstream(inner, cache).positions(ids, Allowed())).source == "cache"
    assert cache.reads - whole > 1
    cache.lost = cache.places[1]
    again = await CachedUpstream(inner, cache).positions(ids, Allowed())
    assert (again.positions, again.source, inner.calls) == (fresh.positions, "upstream", 2)
    assert cache.places.count(cache.lost) == 2


async def test_an_answer_that_lacks_part_of_a_text_is_not_kept() -> None:
    class Short(Synthetic):
        async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
            whole = await super().positions(ids, budget)
            return replace(whole, positions=whole.positions[:2])

    inner, cache = Short(vocabulary_of_size(9)), Watched()
    for asked in (1, 2):
        await CachedUpstream(inner, cache).positions([1, 2, 3, 4], Allowed())
        assert (inner.calls, cache.places) == (asked, [])
