"""An upstream that remembers its runs."""

import json
import zlib
from typing import Any

from adapter.candidates import Candidate, Draft, Position, Usage
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.upstream import Allowance, Upstream
from cache import Cache, Keys, seal, unseal

_SCHEMA = b"run 2"
"""Part of every key: an entry of another format is a miss."""


class CachedUpstream:
    """Asks the cache first, where there is one, then the upstream, and takes a copy."""

    def __init__(self, inner: Upstream, cache: Cache | None, keys: Keys | None = None) -> None:
        self._inner = inner
        self._cache = cache
        self._keys = Keys() if keys is None else keys
        self._fields = (_SCHEMA, *(field.encode() for field in inner.identity))

    @property
    def capabilities(self) -> Capabilities:
        """The upstream's own."""
        return self._inner.capabilities

    @property
    def identity(self) -> tuple[str, ...]:
        """The upstream's own."""
        return self._inner.identity

    async def draft(self, prefix: Prefix, n: int, budget: Allowance) -> Draft:
        """The run stored at this prefix, cut to n, else the upstream's, which is then stored."""
        if self._cache is None:
            return await self._inner.draft(prefix, n, budget)
        key = self._keys.key(*self._fields, prefix.digest)
        blob = await self._cache.get(key)
        payload = None if blob is None else unseal(key, blob)
        if payload is not None:
            return _cut(load_run(payload), n)
        draft = await self._inner.draft(prefix, n, budget)
        await self._cache.put(key, seal(key, dump_run(draft)))
        return draft

    async def close(self) -> None:
        """Close the upstream; the cache is shared and stays open."""
        await self._inner.close()


def dump_run(draft: Draft) -> bytes:
    """Positions and finish reason as compressed JSON; every float comes back exactly."""
    run = {
        "finish": draft.finish_reason,
        "positions": [
            {
                "hidden": position.hidden,
                "floor": position.floor,
                "drafted": None if position.drafted is None else _row(position.drafted),
                "candidates": [_row(candidate) for candidate in position.candidates],
            }
            for position in draft.positions
        ],
    }
    return zlib.compress(json.dumps(run, allow_nan=False, separators=(",", ":")).encode(), 1)


def load_run(payload: bytes) -> Draft:
    """What `dump_run` wrote, from the cache and free of charge."""
    run = json.loads(zlib.decompress(payload))
    positions = tuple(
        Position(
            tuple(_candidate(row) for row in stored["candidates"]),
            None if stored["drafted"] is None else _candidate(stored["drafted"]),
            stored["hidden"],
            stored["floor"],
        )
        for stored in run["positions"]
    )
    return Draft(positions, run["finish"], Usage(), source="cache")


def _cut(run: Draft, n: int) -> Draft:
    if len(run.positions) <= n:
        return run
    return Draft(run.positions[:n], None, run.usage, run.source)


def _row(candidate: Candidate) -> list[Any]:
    return [candidate.token.hex(), candidate.logprob, candidate.id, candidate.special]


def _candidate(row: list[Any]) -> Candidate:
    token, logprob, upstream_id, special = row
    return Candidate(bytes.fromhex(token), logprob, upstream_id, special)
