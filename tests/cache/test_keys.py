"""Keys: one for each sequence of fields, none to be guessed."""

from hypothesis import given, settings
from hypothesis import strategies as st

from cache import Keys

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
