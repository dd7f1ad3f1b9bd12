"""An upstream that remembers what it showed."""

import copy
from collections.abc import AsyncGenerator, Awaitable, Callable, Sequence
from contextlib import aclosing
from dataclasses import replace
from functools import partial
from typing import TypeVar

from adapter.candidates import Draft, Position, Usage
from adapter.errors import BudgetExceeded
from adapter.prefix import Prefix
from adapter.request import CacheUse
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.lookups import Lookups
from adapter.upstream.runs import branches, cut_run, dump_scores, load_run, load_scores, split_run
from adapter.upstream.upstream import Allowance, Upstream
from cache import Cache, Flight, Keys, place, seal, unseal

_RUN = b"run 2"
_SCORES = b"scores 1"
_TEXT = b"text 1"
# Part of every key: an entry of another format is a miss.

Scores = tuple[dict[int, float], Usage]
T = TypeVar("T")


class CachedUpstream:
    """Asks the cache first, where there is one, then the upstream, and takes a copy.

    Those who come to a prefix while somebody asks there share the answer: he pays, theirs has the
    source cache. Distributions do not depend on what was drawn: greedy and sampled runs share
    their entries. `lookups` counts how often the upstream was needed.
    """

    def __init__(self, inner: Upstream, cache: Cache | None, keys: Keys | None = None) -> None:
        self.lookups = Lookups()
        self._inner = inner
        self._cache = cache
        self._keys = Keys() if keys is None else keys
        self._drafting = Flight[tuple[Draft, ...]]()
        self._echoing = Flight[Draft]()
        self._scoring = Flight[Scores]()
        self._use: CacheUse = "bypass" if cache is None else "use"
        self._tenant: str | None = None
        self._rests: dict[bytes, Draft] = {}

    def for_request(self, use: CacheUse = "use", tenant: str | None = None) -> "CachedUpstream":
        """The same upstream as one request uses it, with a count of its own.

        `refresh` reads nothing that was there before, `bypass` leaves nothing behind either; both
        ask alone.
        """
        own = copy.copy(self)
        own.lookups = Lookups()
        own._rests = {}
        own._use = "bypass" if self._cache is None else use
        own._tenant = tenant
        return own

    @property
    def capabilities(self) -> Capabilities:
        """The upstream's own."""
        return self._inner.capabilities

    @property
    def identity(self) -> tuple[str, ...]:
        """The upstream's own."""
        return self._inner.identity

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The run stored at this prefix, else the upstream's, which is then stored.

        What a stored run has beyond n is kept for when it is asked for: one read a run.
        """

        async def ask() -> tuple[Draft, ...]:
            return (await self._inner.draft(prefix, n, budget, sampled),)

        if self._is_a_draw(sampled):
            return (await ask())[0]
        return (await self._stored(prefix, n, ask))[0]

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """The run stored at this prefix alone, else the upstream's, which are then stored."""
        ask = partial(self._inner.draws, prefix, n, budget, choices)
        return await (ask() if self._is_a_draw(True) else self._stored(prefix, n, ask))

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The stored run as one piece, else the upstream's pieces; not shared while they come.

        What came is stored, whichever way the stream ends.
        """
        if self._is_a_draw(sampled):
            async with aclosing(self._inner.stream(prefix, n, budget, sampled)) as pieces:
                async for piece in pieces:
                    yield piece
            return
        stored = self._rests.pop(prefix.digest, None)
        if stored is None:
            payload = await self._read(self._key(_RUN, prefix))
            stored = None if payload is None else load_run(payload)
            self.lookups.count(stored is not None)
        if stored is not None:
            yield self._cut(prefix, stored, n)
            return
        positions: list[Position] = []
        finish = None
        try:
            async with aclosing(self._inner.stream(prefix, n, budget, sampled)) as pieces:
                async for piece in pieces:
                    part = _kept(piece)
                    positions += part.positions
                    finish = part.finish_reason
                    yield piece
        finally:
            if positions or finish is not None:
                await self._store(prefix, Draft(tuple(positions), finish, Usage()))

    async def score(self, prefix: Prefix, ids: Sequence[int], budget: Allowance) -> Scores:
        """Stored scores, and the upstream's for the rest; that one cannot be had is stored too."""
        key = self._key(_SCORES, prefix)

        async def fetch() -> Scores:
            payload = await self._read(key)
            known = {} if payload is None else load_scores(payload)
            missing = [i for i in ids if i not in known]
            usage = Usage()
            if missing:
                scores, usage = await self._inner.score(prefix, missing, budget)
                known |= {i: scores.get(i) for i in missing}
                await self._write(key, dump_scores(known))
            return {i: value for i in ids if (value := known[i]) is not None}, usage

        asked = key + b"".join(i.to_bytes(4, "big") for i in ids)
        (scores, usage), mine = await self._shared(self._scoring, asked, fetch)
        usage = usage if mine else Usage()
        self.lookups.count(not usage.calls)
        return scores, usage

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """The stored positions of this whole text, else the upstream's, which are then stored."""
        whole, length = Prefix.of(ids), len(ids) - 1

        async def fetch() -> Draft:
            known = await self._read_text(whole, length)
            if known is not None:
                return known
            fresh = await self._inner.positions(ids, budget)
            if len(fresh.positions) >= length:
                text = Draft(fresh.positions[:length], None, Usage())
                for start, payload in cut_run(text):
                    await self._write(self._key(_text(start), whole), payload)
            return fresh

        key = self._key(_text(0), whole)
        draft, mine = await self._shared(self._echoing, key, fetch)
        if not mine:
            draft = replace(draft, usage=Usage(), source="cache")
        self.lookups.count(draft.source == "cache")
        return draft

    async def close(self) -> None:
        """Close the upstream; the cache is shared and stays open."""
        await self._inner.close()

    def _is_a_draw(self, sampled: bool) -> bool:
        """Whether a request needs a sample of its own, where nothing can be gone on with.

        A draw along what another request was shown would leave that soon.
        """
        own = sampled and self.capabilities.continues == "none"
        if own:
            self.lookups.count(False)
        return own

    async def _stored(
        self, prefix: Prefix, n: int, ask: Callable[[], Awaitable[tuple[Draft, ...]]]
    ) -> tuple[Draft, ...]:
        """The run stored at a prefix, as n positions; else what is asked for, which is stored."""
        rest = self._rests.pop(prefix.digest, None)
        if rest is not None:
            return (self._cut(prefix, rest, n),)
        key = self._key(_RUN, prefix)

        async def fetch() -> tuple[Draft, ...]:
            payload = await self._read(key)
            if payload is not None:
                return (load_run(payload),)
            fresh = await ask()
            for at, run in branches(prefix, [_kept(draft) for draft in fresh]):
                await self._store(at, run)
            return fresh

        drafts, mine = await self._shared(self._drafting, key, fetch)
        if not mine:
            # Who draws by rejection needs a draft of his own: the other ones are the asker's.
            drafts = (replace(drafts[0], usage=Usage(), source="cache"),)
        hit = drafts[0].source == "cache"
        self.lookups.count(hit)
        return (self._cut(prefix, drafts[0], n),) if hit else drafts

    async def _shared(
        self, flight: Flight[T], key: bytes, fetch: Callable[[], Awaitable[T]]
    ) -> tuple[T, bool]:
        """What a fetch for this key gives, and whether it was this request's own.

        That somebody else had no budget left says nothing of this request: it asks again.
        """
        if self._use != "use":
            return await fetch(), True
        mine = False

        async def own() -> T:
            nonlocal mine
            mine = True
            return await fetch()

        while True:
            try:
                return await flight.share(key, own), mine
            except BudgetExceeded:
                if mine:
                    raise

    def _key(self, kind: bytes, prefix: Prefix) -> bytes:
        tenant = None if self._tenant is None else self._tenant.encode()
        fields = (field.encode() for field in self._inner.identity)
        return self._keys.key(kind, tenant, *fields, prefix.digest)

    async def _store(self, prefix: Prefix, run: Draft) -> None:
        if self._use != "bypass":
            for at, payload in split_run(prefix, run):
                await self._write(self._key(_RUN, at), payload)

    async def _read(self, key: bytes) -> bytes | None:
        if self._cache is None or self._use != "use":
            return None
        blob = await self._cache.get(place(key))
        return None if blob is None else unseal(key, blob)

    async def _read_text(self, whole: Prefix, length: int) -> Draft | None:
        """So many positions of a text, from as many entries as they take; None if one is lost."""
        positions: list[Position] = []
        while len(positions) < length:
            payload = await self._read(self._key(_text(len(positions)), whole))
            if payload is None:
                return None
            positions += load_run(payload).positions
        return Draft(tuple(positions), None, Usage(), source="cache")

    async def _write(self, key: bytes, payload: bytes) -> None:
        if self._cache is not None and self._use != "bypass":
            await self._cache.put(place(key), seal(key, payload))

    def _cut(self, prefix: Prefix, run: Draft, n: int) -> Draft:
        """The first n positions; the rest waits behind them, where its place has a name."""
        head, tail = run.positions[:n], run.positions[n:]
        if not tail:
            return run
        for token in (position.drafted for position in head):
            if token is None or token.id is None:
                break
            prefix = prefix.extend(token)
        else:
            self._rests[prefix.digest] = replace(run, positions=tail)
        return Draft(head, None, run.usage, run.source)


def _text(start: int) -> bytes:
    """The kind of the entry of a text that has so many positions before it."""
    return b"%s %d" % (_TEXT, start)


def _kept(run: Draft) -> Draft:
    """What of a run may be given to others."""
    if run.kept is None or run.kept >= len(run.positions):
        return run
    return replace(run, positions=run.positions[: run.kept], finish_reason=None)
