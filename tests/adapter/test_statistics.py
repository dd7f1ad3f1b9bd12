"""Intervals and tests against values worked out by hand, by scipy, and printed in the paper."""

import math

import numpy as np
import pytest
from scipy.stats import binomtest

from adapter.statistics import bootstrap, closed, gap_closed, mcnemar, mean_gap_closed, wilson

PAPER = {  # Table 2 as printed: (base, proxy-tuned, tuned), by column
    "13B": [
        (2.1, 83.4, 87.3),
        (6.6, 26.4, 32.4),
        (70.4, 0.1, 0.0),
        (38.6, 57.4, 61.6),
        (49.1, 82.0, 80.4),
    ],
    "70B": [
        (3.7, 88.0, 90.4),
        (9.6, 32.0, 51.8),
        (67.4, 0.0, 0.0),
        (42.3, 59.2, 68.3),
        (53.9, 85.1, 79.6),
    ],
}


def test_wilson_by_hand():
    """1 of 4: z² / 4 = 0.9604, so (0.25 + 0.4802 ± 1.96 √(.046875 + .060025)) / 1.9604."""
    found = wilson(1, 4)
    assert found.value == 0.25
    assert found.low == pytest.approx(0.0456, abs=1e-4)
    assert found.high == pytest.approx(0.6994, abs=1e-4)


@pytest.mark.parametrize(("right", "asked"), [(0, 7), (7, 7), (3, 10), (412, 981), (1, 100_000)])
def test_wilson_is_that_of_scipy(right, asked):
    theirs = binomtest(right, asked).proportion_ci(method="wilson")
    ours = wilson(right, asked)
    assert (ours.low, ours.high) == pytest.approx((theirs.low, theirs.high), abs=1e-12)
    assert 0 <= ours.low <= ours.value <= ours.high <= 1


def test_wilson_of_nothing():
    with pytest.raises(ValueError, match="nothing was asked"):
        wilson(0, 0)


def split(only_first: int, only_second: int, both: int = 3, neither: int = 2):
    """Two systems' items: right and wrong as counted."""
    pairs = [(True, False)] * only_first + [(False, True)] * only_second
    return zip(*(pairs + [(True, True)] * both + [(False, False)] * neither), strict=True)


@pytest.mark.parametrize(
    ("only_first", "only_second", "p"),
    [
        (0, 0, 1.0),
        (1, 0, 1.0),
        (0, 5, 2 / 32),
        (1, 5, 2 * (1 + 6) / 64),
        (2, 8, 2 * (1 + 10 + 45) / 1024),
        (4, 4, 1.0),
    ],
)
def test_mcnemar_by_hand(only_first, only_second, p):
    assert mcnemar(*split(only_first, only_second)) == pytest.approx(p, rel=1e-12)
    assert mcnemar(*split(only_second, only_first)) == pytest.approx(p, rel=1e-12)


@pytest.mark.parametrize(("a", "b"), [(30, 59), (812, 931), (1500, 1600), (0, 3000)])
def test_mcnemar_of_many_is_that_of_scipy(a, b):
    assert mcnemar(*split(a, b)) == pytest.approx(binomtest(a, a + b).pvalue, rel=1e-9)


def test_mcnemar_takes_numpy_rows():
    """Its truth values add up to fixed-width integers, which overflow where Python's do not."""
    first, second = np.array([list(one) for one in split(50, 150)])
    assert mcnemar(first, second) == pytest.approx(binomtest(50, 200).pvalue, rel=1e-9)


def test_mcnemar_wants_the_same_items():
    with pytest.raises(ValueError, match=r"shorter|longer"):
        mcnemar([True], [True, False])


def test_the_bootstrap_of_a_mean_is_near_its_normal_interval():
    scores = np.random.default_rng(3).normal(2.0, 1.0, 400)
    found = bootstrap([scores], lambda mean: mean)
    half = 1.96 * scores.std() / math.sqrt(400)
    assert found.value == pytest.approx(scores.mean())
    assert found.low == pytest.approx(scores.mean() - half, abs=0.01)
    assert found.high == pytest.approx(scores.mean() + half, abs=0.01)
    assert bootstrap([scores], lambda mean: mean) == found  # the seed is fixed
    assert bootstrap([scores], lambda mean: mean, seed=1) != found


def test_the_bootstrap_of_three_items_by_enumeration():
    """All 27 draws of 3 items are equally likely; the quantiles are read off their sorted means."""
    scores = [0.0, 1.0, 5.0]
    draws = sorted((a + b + c) / 3 for a in scores for b in scores for c in scores)
    found = bootstrap([scores], lambda mean: mean)
    assert (found.low, found.high) == (draws[0], draws[-1])  # each has 1 of 27, more than .025


def test_a_difference_is_paired():
    """One system is the other plus a tenth, so the difference is certain though each is not."""
    first = np.random.default_rng(0).random(50)
    found = bootstrap([first, first + 0.1], lambda a, b: b - a)
    assert (found.value, found.low, found.high) == pytest.approx((0.1, 0.1, 0.1))


def test_bits_are_by_byte():
    found = bootstrap([[10.0, 90.0]], lambda bits: bits, [5.0, 90.0])
    assert found.value == pytest.approx(100 / 95)
    assert (found.low, found.high) == pytest.approx((1.0, 2.0))


def test_each_system_has_amounts_of_its_own():
    """The same bits, but one system reads a byte more of each text."""
    found = bootstrap([[12.0, 12.0], [12.0, 12.0]], lambda a, b: b - a, [[3.0, 3.0], [4.0, 4.0]])
    assert (found.value, found.low, found.high) == (-1.0, -1.0, -1.0)


def test_gap_closed_by_hand():
    assert gap_closed([(0.2, 0.5, 0.8)]) == pytest.approx(0.5)
    assert gap_closed([(1.4, 1.1, 1.2)]) == pytest.approx(1.5)  # lower is better, above 1
    assert gap_closed([(0.2, 0.5, 0.8), (0.5, 0.4, 0.6)]) == pytest.approx(-0.25)
    assert gap_closed([(0.2, 0.5, 0.8), (0.5, 0.4, 0.5)]) == pytest.approx(0.25)  # no gap counts 0


def test_gap_closed_of_the_papers_printed_table():
    assert round(100 * gap_closed(PAPER["13B"]), 1) == 91.8
    assert round(100 * gap_closed(PAPER["70B"]), 1) == 87.3
    by_column = [round(100 * float(closed(*column)), 1) for column in PAPER["70B"]]
    assert by_column == [97.2, 53.1, 100.0, 65.0, 121.4]


def test_an_interval_of_the_gap_closed():
    hosted, steered, tuned = [0] * 8, [1, 1, 1, 0] * 2, [1] * 8
    found = bootstrap([hosted, steered, tuned], closed)
    assert found.value == 0.75
    assert 0.3 < found.low < 0.75 < found.high <= 1


def test_an_interval_of_the_mean_gap_closed():
    """A column that is certain halves the spread of one that is not."""
    one, sure = np.ones((3, 40)), np.array([np.zeros(40), np.full(40, 0.5), np.ones(40)])
    open_ = np.array([np.zeros(40), np.arange(40) % 2, np.ones(40)])
    alone = mean_gap_closed([(open_, one)])
    assert alone == bootstrap(open_, closed)
    both = mean_gap_closed([(open_, one), (sure, one)])
    assert both.value == 0.5
    assert both.high - both.low == pytest.approx((alone.high - alone.low) / 2)


def test_columns_are_drawn_on_their_own():
    """Two columns that lie apart are surer together than one; drawn alike they would not be."""
    one = np.ones((3, 40))
    column = np.array([np.zeros(40), np.arange(40) % 2, np.ones(40)])
    alone, both = (mean_gap_closed([(column, one)] * times) for times in (1, 2))
    assert both.high - both.low < 0.85 * (alone.high - alone.low)
