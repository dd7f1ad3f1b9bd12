"""Envelopes: what was sealed comes back, anything else is a miss."""

import hashlib
import json
import pickle  # noqa: TID251 - what must never be read
import random
from collections.abc import Callable

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import place, seal, unseal
from tests.conftest import Measured
from tests.support.counts import count


@settings(deadline=None)
@given(st.binary(max_size=40), st.binary(max_size=200))
def test_what_was_sealed_comes_back(key: bytes, payload: bytes) -> None:
    assert unseal(key, seal(key, payload)) == payload


@settings(deadline=None)
@given(st.binary(max_size=200))
def test_other_bytes_are_a_miss(blob: bytes) -> None:
    assert unseal(b"key", blob) is None


def test_every_changed_bit_is_a_miss() -> None:
    blob = seal(b"key", b"payload")
    for at in range(len(blob) * 8):
        changed = bytearray(blob)
        changed[at // 8] ^= 1 << at % 8
        assert unseal(b"key", bytes(changed)) is None


def test_every_cut_is_a_miss() -> None:
    blob = seal(b"key", b"payload")
    assert all(unseal(b"key", blob[:end]) is None for end in range(len(blob)))
    assert unseal(b"key", blob + b"\0") is None


def test_a_value_under_another_key_is_a_miss() -> None:
    assert unseal(b"other", seal(b"key", b"payload")) is None


def test_who_sees_place_and_value_cannot_forge_another() -> None:
    blob = seal(b"key", b"payload")
    at = place(b"key")
    head, known = blob[:45], (at, at.hex().encode(), b"")
    assert head[5:37] == at != b"key"
    forged = [head + b"pAyload" + hashlib.sha256(head + b"pAyload").digest()]
    forged += [seal(guess, b"pAyload") for guess in known]
    forged += [head + seal(guess, b"pAyload")[45:] for guess in known]
    assert [unseal(b"key", one) for one in forged] == [None] * 7


_KEY, _PAYLOAD = b"key", b"payload of some length"
_GOOD = seal(_KEY, _PAYLOAD)


def _cut_out(at: int, end: int) -> bytes:
    return _GOOD[:at] + _GOOD[end:] if at != end else b""


def _of_version(version: int) -> bytes:
    """With a sum, but none that takes the key."""
    head = _GOOD[:4] + bytes([version]) + _GOOD[5:-32]
    return head + hashlib.sha256(head).digest()


def bad_entry(luck: random.Random) -> bytes:
    """A sound entry with one fault, or something that was never one."""
    at, end = luck.randrange(len(_GOOD)), luck.randrange(len(_GOOD))
    kinds: tuple[Callable[[], bytes], ...] = (
        lambda: _GOOD[:at] + bytes([_GOOD[at] ^ 1 << luck.randrange(8)]) + _GOOD[at + 1 :],
        lambda: _GOOD[:at],
        lambda: _GOOD + luck.randbytes(luck.randrange(1, 80)),
        lambda: _cut_out(at, end),
        lambda: _of_version(luck.randrange(256)),
        lambda: luck.randbytes(luck.randrange(300)),
        lambda: pickle.dumps({"payload": luck.randbytes(luck.randrange(99))}),
        lambda: json.dumps({"payload": [luck.random()] * 9}).encode(),
        lambda: seal(luck.randbytes(8), _PAYLOAD),
    )
    return luck.choice(kinds)()


@pytest.mark.reliability("A3")
def test_bad_entries_of_every_kind_are_misses(measured: Measured) -> None:
    luck, many = random.Random(3), count(100_000)
    assert unseal(_KEY, _GOOD) == _PAYLOAD
    for _ in range(many):
        blob = bad_entry(luck)
        assert unseal(_KEY, blob) is None, blob
    measured(f"{many:,} bad entries of nine kinds", "0 exceptions, 0 accepted")
