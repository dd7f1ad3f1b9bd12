"""The fitted strength, and that no item has a say in its own."""

import dataclasses

import pytest

from adapter.evaluation.fitting import best_alpha, cross_fitted
from adapter.evaluation.outcomes import result
from tests.adapter.evaluation.makings import outcomes


def at(scores):
    """Outcomes by strength."""
    return [one for a, row in scores.items() for one in outcomes("adapted", row, alpha=a)]


def test_the_best_strength_is_the_highest_accuracy_or_the_fewest_bits():
    asked = at({0.5: [1, 0, 0], 1.0: [1, 1, 0], 2.0: [0, 0, 1]})
    assert best_alpha(asked, lower_is_better=False) == 1.0
    assert best_alpha(asked, lower_is_better=True) == 0.5


def test_bits_count_by_byte_and_not_by_text():
    short, long = (
        dataclasses.replace(one, item=name, amount=size)
        for name, size, one in zip("sl", (1, 99), outcomes("adapted", [0, 0]), strict=True)
    )
    asked = [
        dataclasses.replace(one, alpha=alpha, score=score)
        for alpha, scores in {1.0: (1, 100), 2.0: (8, 99)}.items()  # the mean over texts prefers 1
        for one, score in zip((short, long), scores, strict=True)
    ]
    assert best_alpha(asked, lower_is_better=True) == 1.0
    assert result(one for one in asked if one.alpha == 1.0) == pytest.approx(1.01)


@pytest.mark.parametrize("lower", [False, True])
def test_of_equal_strengths_the_smallest(lower):
    assert best_alpha(at({3.0: [1, 0], 0.5: [0, 1], 2.0: [1, 0]}), lower_is_better=lower) == 0.5


def test_only_items_asked_at_every_strength_count():
    asked = at({1.0: [0, 1, 1], 2.0: [1]})
    assert best_alpha(asked, lower_is_better=False) == 2.0
    hosted = outcomes("hosted", [1, 1, 1])
    assert best_alpha(asked + hosted, lower_is_better=False) == 2.0
    with pytest.raises(ValueError, match="every strength"):
        best_alpha(hosted, lower_is_better=False)


def test_each_fold_takes_the_strength_of_the_others():
    """Each fold's items like another strength best: the fit crosses over and is wrong throughout.

    Were an item's own outcome used, all would be right.
    """
    names = [f"q{i}" for i in range(40)]
    probe = cross_fitted(at({1.0: [1] * 40}), {}, False)
    assert probe.result == 1
    first = {one.item for one in at({1.0: [1] * 40}) if _fold_of(one.item) == 0}
    assert 5 < len(first) < 35
    asked = at({1.0: [n in first for n in names], 2.0: [n not in first for n in names]})
    fit = cross_fitted(asked, {}, False)
    assert fit.alphas == (2.0, 1.0)
    assert fit.result == 0
    assert [one.item for one in fit.outcomes if one.alpha == 2.0] == sorted(
        first, key=lambda n: int(n[1:])
    )
    assert {one.item for one in fit.outcomes} == set(names)


def _fold_of(item):
    """The fold by the fit itself: only one of two folds prefers strength 2, so the other has it."""
    asked = at({1.0: [0] * 40, 2.0: [f"q{i}" == item for i in range(40)]})
    return cross_fitted(asked, {}, False).alphas.index(1.0)


def test_a_group_is_in_one_fold_and_the_folds_do_not_move():
    asked = at({1.0: [0] * 40, 2.0: [i < 20 for i in range(40)]})
    groups = {f"q{i}": "first" if i < 20 else f"q{i}" for i in range(40)}
    alphas = cross_fitted(asked, groups, False).alphas
    assert sorted(alphas) == [1.0, 2.0]  # all that prefer 2 are on one side
    held = [one.item for one in cross_fitted(asked, groups, False).outcomes if one.alpha == 1.0]
    assert {f"q{i}" for i in range(20)} <= set(held)
    fewer = [one for one in asked if one.item not in ("q25", "q30")]
    still = [one.item for one in cross_fitted(fewer, groups, False).outcomes if one.alpha == 1.0]
    assert still == [item for item in held if item not in ("q25", "q30")]


def test_another_seed_parts_otherwise_and_more_folds_are_more_strengths():
    asked = at({1.0: [0] * 40, 2.0: [i == 7 for i in range(40)]})
    parted = {
        tuple(one.item for one in cross_fitted(asked, {}, False, seed=s).outcomes if one.alpha == 1)
        for s in range(4)
    }
    assert len(parted) == 4
    assert sorted(cross_fitted(asked, {}, False, folds=4).alphas) == [1.0, 2.0, 2.0, 2.0]


def test_too_few_items_for_the_folds():
    with pytest.raises(ValueError, match="1 items are too few for 2 folds"):
        cross_fitted(at({1.0: [1], 2.0: [0]}), {}, False)
