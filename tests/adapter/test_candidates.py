"""Whatever an upstream sends becomes a sound position or a typed error."""

import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from adapter.candidates import END, Candidate, Usage, make_position
from adapter.errors import UpstreamMalformed

entries = st.lists(
    st.builds(
        Candidate,
        token=st.binary(max_size=4),
        logprob=st.one_of(st.floats(), st.just(-9999.0), st.floats(-20, 0)),
        id=st.one_of(st.none(), st.integers(0, 9)),
        special=st.one_of(st.none(), st.just(END)),
    ),
    max_size=30,
)


@given(entries)
def test_any_entries_give_a_sound_position_or_a_typed_error(sent):
    try:
        position = make_position(sent, None)
    except UpstreamMalformed:
        return
    logprobs = [c.logprob for c in position.candidates]
    assert all(math.isfinite(x) and x <= 0 for x in logprobs)
    assert logprobs == sorted(logprobs, reverse=True)
    assert len({c.identity for c in position.candidates}) == len(logprobs) > 0
    assert 0 <= position.hidden <= 1
    assert position.floor in (0.0, logprobs[-1])


def test_the_best_of_a_repeated_token_stays():
    position = make_position([Candidate(b"a", -3.0, id=1), Candidate(b"a", -2.0, id=1)], None)
    assert [c.logprob for c in position.candidates] == [-2.0]


def test_two_ids_with_the_same_bytes_are_two_tokens():
    position = make_position([Candidate(b"a", -1.0, id=1), Candidate(b"a", -1.0, id=2)], None)
    assert len(position.candidates) == 2


def test_nothing_is_hidden_where_the_whole_vocabulary_is_shown():
    sent = [Candidate(b"a", math.log(0.5), id=1), Candidate(b"b", math.log(0.49999), id=2)]
    assert make_position(sent, None).hidden == pytest.approx(1e-5)
    assert make_position(sent, None, vocabulary_size=2).hidden == 0.0


def test_the_lowest_entry_bounds_what_is_hidden():
    sent = [Candidate(b"a", -3.0, id=1), Candidate(b"b", -2.0, id=2)]
    assert make_position(sent, None).floor == -3.0


@pytest.mark.parametrize(
    "lost",
    [
        None,
        Candidate(b"c", math.nan, id=3),
        Candidate(b"c", -9999.0, id=3),
        Candidate(b"b", -4.0),  # printed like another token, and maybe another one
    ],
)
def test_nothing_bounds_it_where_an_entry_is_lost(lost):
    sent = [Candidate(b"a", -3.0, id=1), lost, Candidate(b"b", -2.0)]
    position = make_position(sent, None)
    assert (len(position.candidates), position.floor) == (2, 0.0)


def test_a_mass_far_above_one_is_refused():
    with pytest.raises(UpstreamMalformed, match="mass of"):
        make_position([Candidate(bytes([i]), -0.1, id=i) for i in range(3)], None)


def test_usage_adds_up():
    assert Usage(1, 10, 4, 2) + Usage(2, 5, 0, 1) == Usage(3, 15, 4, 3)
    assert Usage(3, 15, 4, 3) - Usage(1, 10, 4, 2) == Usage(2, 5, 0, 1)
