"""Envelopes: what was sealed comes back, anything else is a miss."""

import hashlib

from hypothesis import given, settings
from hypothesis import strategies as st

from cache import place, seal, unseal


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
