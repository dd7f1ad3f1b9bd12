"""Text leaves whole: no half characters, no part of a stop string."""

from hypothesis import given
from hypothesis import strategies as st

from adapter.stopping import Release


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
