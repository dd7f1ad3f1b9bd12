"""An upstream that remembers what it showed."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import aclosing

from adapter.candidates import Draft, Position, Usage
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.runs import dump_scores, load_run, load_scores, split_run
from adapter.upstream.upstream import Allowance, Upstream
from cache import Cache, Keys, seal, unseal

_RUN = b"run 2"
_SCORES = b"scores 1"
# Part of every key: an entry of another format is a miss.


class CachedUpstream:
    """Asks the cache first, where there is one, then the upstream, and takes a copy.

    Distributions do not depend on what was drawn: greedy and sampled runs share their entries.
    """

    def __init__(self, inner: Upstream, cache: Cache | None, keys: Keys | None = None) -> None:
        self._inner = inner
        self._cache = cache
        self._keys = Keys() if keys is None else keys
        self._fields = tuple(field.encode() for field in inner.identity)

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
        """The run stored at this prefix, cut to n, else the upstream's, which is then stored."""
        stored = await self._stored(prefix, n)
        if stored is not None:
            return stored
        draft = await self._inner.draft(prefix, n, budget, sampled)
        await self._store(prefix, draft)
        return draft

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The stored run as one piece, else the upstream's pieces.

        What came is stored, whichever way the stream ends.
        """
        stored = await self._stored(prefix, n)
        if stored is not None:
            yield stored
            return
        positions: list[Position] = []
        finish = None
        try:
            async with aclosing(self._inner.stream(prefix, n, budget, sampled)) as pieces:
                async for piece in pieces:
                    positions += piece.positions
                    finish = piece.finish_reason
                    yield piece
        finally:
            if positions or finish is not None:
                await self._store(prefix, Draft(tuple(positions), finish, Usage()))

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Stored scores, and the upstream's for the rest; that one cannot be had is stored too."""
        key = self._keys.key(_SCORES, *self._fields, prefix.digest)
        payload = await self._read(key)
        known = {} if payload is None else load_scores(payload)
        missing = [i for i in ids if i not in known]
        usage = Usage()
        if missing:
            scores, usage = await self._inner.score(prefix, missing, budget)
            known |= {i: scores.get(i) for i in missing}
            await self._write(key, dump_scores(known))
        return {i: value for i in ids if (value := known[i]) is not None}, usage

    async def close(self) -> None:
        """Close the upstream; the cache is shared and stays open."""
        await self._inner.close()

    async def _stored(self, prefix: Prefix, n: int) -> Draft | None:
        payload = await self._read(self._run_key(prefix))
        return None if payload is None else _cut(load_run(payload), n)

    async def _store(self, prefix: Prefix, run: Draft) -> None:
        if self._cache is not None:
            for at, payload in split_run(prefix, run):
                await self._write(self._run_key(at), payload)

    def _run_key(self, prefix: Prefix) -> bytes:
        return self._keys.key(_RUN, *self._fields, prefix.digest)

    async def _read(self, key: bytes) -> bytes | None:
        blob = None if self._cache is None else await self._cache.get(key)
        return None if blob is None else unseal(key, blob)

    async def _write(self, key: bytes, payload: bytes) -> None:
        if self._cache is not None:
            await self._cache.put(key, seal(key, payload))


def _cut(run: Draft, n: int) -> Draft:
    if len(run.positions) <= n:
        return run
    return Draft(run.positions[:n], None, run.usage, run.source)
