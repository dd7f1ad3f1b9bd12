"""Runs as the cache keeps them: compressed JSON, every float exact."""

import json
import zlib
from collections.abc import Iterable, Iterator
from dataclasses import replace
from typing import Any

from adapter.candidates import Candidate, Draft, Position, Usage
from adapter.prefix import Prefix

LONGEST = 32
"""Positions of a stored run."""
LARGEST = 64 * 1024
"""Bytes of a stored run; only a single position may be larger."""


def split_run(prefix: Prefix, run: Draft) -> Iterator[tuple[Prefix, bytes]]:
    """A run as entries of bounded size, each with the prefix that it stands behind."""
    places = list(_places(prefix, run))
    for start, payload in cut_run(run):
        if start < len(places):
            yield places[start], payload


def branches(prefix: Prefix, runs: Iterable[Draft]) -> Iterator[tuple[Prefix, Draft]]:
    """Runs from one place so that none repeats another: each from where it leaves those before."""
    known: set[bytes] = set()
    for run in runs:
        places = list(_places(prefix, run))
        for start, place in enumerate(places):
            if place.digest not in known:
                yield place, replace(run, positions=run.positions[start:])
                break
        known.update(place.digest for place in places)


def cut_run(run: Draft) -> Iterator[tuple[int, bytes]]:
    """A run as entries of bounded size, each with the number of positions before it."""
    start = 0
    while True:
        end, payload = _fitting(run, start)
        yield start, payload
        if end >= len(run.positions):
            return
        start = end


def dump_run(run: Draft) -> bytes:
    """Positions and finish reason."""
    stored = {
        "finish": run.finish_reason,
        "positions": [
            {
                "hidden": position.hidden,
                "floor": position.floor,
                "drafted": None if position.drafted is None else _row(position.drafted),
                "candidates": [_row(candidate) for candidate in position.candidates],
            }
            for position in run.positions
        ],
    }
    return _pack(stored)


def load_run(payload: bytes) -> Draft:
    """What `dump_run` wrote, from the cache and free of charge."""
    run = _unpack(payload)
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


def dump_scores(scores: dict[int, float | None]) -> bytes:
    """Log-probabilities by id, None where the upstream cannot tell."""
    return _pack(list(scores.items()))


def load_scores(payload: bytes) -> dict[int, float | None]:
    """What `dump_scores` wrote."""
    return dict(_unpack(payload))


def _places(prefix: Prefix, run: Draft) -> Iterator[Prefix]:
    """Where a run's positions stand, as far as that can be named; one place at least."""
    yield prefix
    for position in run.positions[:-1]:
        if position.drafted is None or position.drafted.id is None:
            return
        prefix = prefix.extend(position.drafted)
        yield prefix


def _fitting(run: Draft, start: int) -> tuple[int, bytes]:
    """Where the entry that begins at a position ends, and the entry."""
    size = min(LONGEST, len(run.positions) - start)
    while True:
        end = start + size
        last = end == len(run.positions)
        part = Draft(run.positions[start:end], run.finish_reason if last else None, Usage())
        payload = dump_run(part)
        if len(payload) <= LARGEST or size <= 1:
            return end, payload
        size //= 2


def _row(candidate: Candidate) -> list[Any]:
    return [candidate.token.hex(), candidate.logprob, candidate.id, candidate.special]


def _candidate(row: list[Any]) -> Candidate:
    token, logprob, upstream_id, special = row
    return Candidate(bytes.fromhex(token), logprob, upstream_id, special)


def _pack(value: Any) -> bytes:
    return zlib.compress(json.dumps(value, allow_nan=False, separators=(",", ":")).encode(), 1)


def _unpack(payload: bytes) -> Any:
    return json.loads(zlib.decompress(payload))
