"""What counts as the same answer, case by case."""

from fractions import Fraction

import pytest

from adapter.errors import SettingsError
from adapter.evaluation.matching import last_number, right


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        (" Lena Voss\n", ["Lena Voss"], True),
        ("lena Voss", ["Lena Voss"], False),
        ("Lena Voss", ["Ada Mohn", "Lena Voss "], True),
        ("Lena Voss, of course", ["Lena Voss"], False),
        ("", ["Lena Voss"], False),
    ],
)
def test_exact(answer, accepted, expected):
    assert right("exact", answer, accepted) is expected


@pytest.mark.parametrize(
    ("answer", "accepted", "expected"),
    [
        ("The  Old Mill!", ["old mill"], True),
        ("a mill", ["An Mill."], True),
        ("theatre", ["atre"], False),  # "the" only as a word
        ("mill-town", ["milltown"], True),  # punctuation goes without a trace, as in SQuAD's script
        ("mill town", ["milltown"], False),
        ("the miller’s “Daughter”", ["miller's daughter"], True),
        ("mill, or town", ["mill"], False),
        ("Café", ["cafe"], False),
    ],
)
def test_normalised(answer, accepted, expected):
    assert right("normalised", answer, accepted) is expected


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("so there are 3 + 4 = 7.", 7),
        ("#### 1,234", 1234),
        ("it costs $1,234.50.", Fraction("1234.5")),
        ("-5", -5),
        ("to -$5", -5),
        ("10-4", 4),  # a difference, no negative number
        ("2.50", Fraction(5, 2)),
        (".5", Fraction(1, 2)),
        ("1,234,567", 1234567),
        ("12,34", 34),  # no thousands
        ("1,2345", 2345),
        ("50%", 50),
        ("seven", None),
        ("", None),
    ],
)
def test_last_number(text, expected):
    assert last_number(text) == expected


def test_a_number_is_that_of_a_whole_solution():
    solution = "He has 3 boxes of 6.\n#### 18"
    assert right("number", "3 * 6 = 18.00", [solution])
    assert not right("number", "18 boxes? No, 3.", [solution])
    assert not right("number", "eighteen", [solution])


def test_a_number_cannot_be_asked_where_none_is_accepted():
    with pytest.raises(SettingsError, match="has no number in digits"):
        right("number", "7", ["seven"])


def test_an_unknown_match():
    with pytest.raises(SettingsError, match="no match 'fuzzy'; known: exact, normalised, number"):
        right("fuzzy", "a", ["a"])
