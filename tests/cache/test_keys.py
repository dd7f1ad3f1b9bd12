"""Keys: one for each sequence of fields, none to be guessed."""

import random
from collections.abc import Iterator
from itertools import islice

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Keys
from tests.conftest import Measured
from tests.support.counts import count

fields = st.lists(st.one_of(st.none(), st.binary(max_size=4)), max_size=4)


@settings(deadline=None)
@given(fields, fields)
def test_keys_are_equal_only_for_equal_fields(one: list, other: list) -> None:
    keys = Keys(b"secret")
    assert (keys.key(*one) == keys.key(*other)) == (one == other)


def test_borders_count_and_absent_is_not_empty() -> None:
    keys = Keys(b"secret")
    rows = [(b"ab", b"c"), (b"a", b"bc"), (b"abc",), (b"",), (None,), (), (b"", b""), (b"\0",)]
    rows += [(b"a", None), (b"a\0",), (b"a", b"b"), (b"a\1b",), (b"a" + bytes(7) + b"\1b",)]
    assert len({keys.key(*row) for row in rows}) == len(rows)


def test_the_secret_decides() -> None:
    assert Keys(b"one").key(b"x") != Keys(b"two").key(b"x")
    assert Keys().key(b"x") == Keys().key(b"x")
    assert Keys().key(b"x") != Keys(b"").key(b"x")
    assert len(Keys().key(b"x")) == 32


Row = tuple[bytes | None, ...]


def rows() -> Iterator[Row]:
    """Random rows, each with those that a careless encoding would take for it."""
    luck = random.Random(4)
    while True:
        row = [luck.randbytes(luck.randrange(12)) for _ in range(luck.randrange(1, 7))]
        at = luck.randrange(len(row))
        border = luck.randrange(len(row[at]) + 1)
        yield tuple(row)
        yield (*row[:at], row[at][:border], row[at][border:], *row[at + 1 :])
        yield (*row[:at], None, *row[at + 1 :])
        yield (*row[:at], b"", *row[at + 1 :])
        yield (*row, None)
        yield (*row, b"")
        yield (b"".join(row),)
        yield tuple(reversed(row))
        yield (b"\1" + len(row[0]).to_bytes(8, "big") + row[0], *row[1:])


@pytest.mark.reliability("A4")
def test_no_two_rows_have_one_key(measured: Measured) -> None:
    keys, wanted = Keys(b"secret"), count(1_000_000)
    different = set(islice(rows(), int(wanted * 1.3)))
    assert len(different) >= wanted
    assert len({keys.key(*row) for row in different}) == len(different)
    measured(f"{len(different):,} rows, random and alike", "0 collisions")
