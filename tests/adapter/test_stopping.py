"""Text leaves whole: no half characters, no part of a stop string."""

import random

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.stopping import Release
from tests.support.counts import count


def fed(pieces, stops=()):
    release = Release(stops)
    out = []
    for piece in pieces:
        out.append(release.feed(piece))
        if release.stopped:
            break
    return [*out, release.flush()], release.stopped


def test_a_character_is_released_when_it_is_whole():
    out, _ = fed([b"a\xe6", b"\x97", b"\xa5b"])
    assert out == ["a", "", "日b", ""]


def test_a_stop_string_is_cut_and_its_start_held_back():
    out, stopped = fed([b"one\n", b"\nQ", b": two"], ["\n\nQ:"])
    assert (out, stopped) == (["one", "", "", ""], True)


def test_a_false_start_is_released():
    out, stopped = fed([b"a\n", b"b"], ["\n\n"])
    assert (out, stopped) == (["a", "\nb", ""], False)


def test_what_is_held_comes_out_at_the_end():
    out, stopped = fed([b"a\n", b"\xe6"], ["\n\n"])
    assert ("".join(out), stopped) == ("a\n\ufffd", False)


def test_the_earliest_stop_wins():
    out, _ = fed([b"xay b"], ["b", "a"])
    assert "".join(out) == "x"


@given(
    st.text(alphabet="ab\n日", max_size=40),
    st.lists(st.text(alphabet="ab\n日", min_size=1, max_size=4), max_size=3),
    st.lists(st.integers(1, 5), min_size=1, max_size=60),
)
def test_any_cutting_gives_the_same_text(text, stops, sizes):
    data, pieces, at = text.encode(), [], 0
    for size in sizes:
        pieces.append(data[at : at + size])
        at += size
    pieces.append(data[at:])
    out, stopped = fed(pieces, stops)
    # the slow twin: the first moment at which the text so far holds a stop string
    for end in range(len(text) + 1):
        found = [at for at in (text[:end].find(s) for s in stops) if at >= 0]
        if found:
            assert stopped
            assert "".join(out) == text[: min(found)]
            return
    assert not stopped
    assert "".join(out) == text


@pytest.mark.reliability("D8")
def test_any_bytes_in_any_tokens_leave_as_whole_characters(measured):
    """Half of them valid text cut anywhere, half with bytes that are none."""
    luck, many, invalid = random.Random(8), count(10_000), 0
    letters = "aé日🙂\n\u0301"
    for number in range(many):
        text = "".join(luck.choices(letters, k=luck.randrange(1, 20))).encode()
        data = text if number % 2 else bytes(b ^ (luck.random() < 0.1) * 128 for b in text)
        tokens, at = [], 0
        while at < len(data):
            size = luck.randrange(1, 5)
            tokens.append(data[at : at + size])
            at += size
        out, _ = fed(tokens)
        expected = data.decode(errors="replace")
        invalid += "\ufffd" in expected
        assert "".join(out) == expected
        for piece in out:
            assert expected.startswith(piece)
            expected = expected[len(piece) :]
            piece.encode()
    assert many / 10 < invalid < many
    measured(f"{many:,} byte sequences", f"all valid UTF-8; {invalid:,} had bytes that are no text")
