"""Envelopes: what was sealed comes back, anything else is a miss."""

import hashlib
import json
import pickle  # noqa: TID251 - what must never be read

import pytest
from hypothesis import HealthCheck, given, settings
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
_PLACES = st.integers(0, len(_GOOD) - 1)


def _flipped(at: int, bit: int) -> bytes:
    return _GOOD[:at] + bytes([_GOOD[at] ^ 1 << bit]) + _GOOD[at + 1 :]


def _of_version(version: int) -> bytes:
    """With a sum that is right for it, as an older or newer adapter would write."""
    head = _GOOD[:4] + bytes([version]) + _GOOD[5:-32]
    return head + hashlib.blake2b(head, key=_KEY, digest_size=32).digest()


_BAD = st.one_of(
    st.builds(_flipped, _PLACES, st.integers(0, 7)),
    st.builds(lambda end: _GOOD[:end], _PLACES),
    st.builds(lambda more: _GOOD + more, st.binary(min_size=1, max_size=80)),
    st.builds(lambda a, b: _GOOD[:a] + _GOOD[b:], _PLACES, _PLACES).filter(_GOOD.__ne__),
    st.builds(_of_version, st.integers(0, 255)),
    st.binary(max_size=300),
    st.builds(lambda value: pickle.dumps(value), st.one_of(st.text(), st.binary())),
    st.builds(lambda value: json.dumps(value).encode(), st.dictionaries(st.text(), st.floats())),
    st.builds(seal, st.binary().filter(_KEY.__ne__), st.just(_PAYLOAD)),
)


@pytest.mark.reliability("A3")
def test_bad_entries_of_every_kind_are_misses(measured: Measured) -> None:
    @settings(
        max_examples=count(100_000),
        deadline=None,
        database=None,
        suppress_health_check=list(HealthCheck),
    )
    @given(_BAD)
    def misses(blob: bytes) -> None:
        nonlocal tried
        tried += 1
        assert unseal(_KEY, blob) is None

    tried = 0
    misses()
    assert tried >= count(100_000) * 0.9
    measured(f"{tried:,} bad entries of nine kinds", "0 exceptions, 0 accepted")
