"""The prefix cache in front of an upstream."""

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.candidates import END, Candidate, Draft, Usage, make_position
from adapter.prefix import Prefix
from adapter.upstream.cached import CachedUpstream
from adapter.upstream.capabilities import COMPLETIONS
from adapter.upstream.runs import dump_run, load_run
from adapter.upstream.upstream import Allowance
from cache import Keys, MemoryCache
from tests.adapter.upstream.vocabularies import Allowed, thorough

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
        budget.take()
        self.asked += 1
        return self._draft

    async def close(self) -> None:
        self.closed = True


def cached(inner: Fixed, cache: MemoryCache | None, keys: Keys | None = None) -> CachedUpstream:
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


async def test_a_longer_run_serves_shorter_ones() -> None:
    upstream = cached(Fixed(), MemoryCache(10**6, 60))
    await upstream.draft(PREFIX, 2, Allowed())
    short = await upstream.draft(PREFIX, 1, Allowed())
    assert (short.positions, short.finish_reason) == (RUN.positions[:1], None)


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
