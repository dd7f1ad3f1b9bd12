"""The rejection rule: what comes out follows the target, whatever the source was."""

import numpy as np
import pytest
from scipy.stats import chisquare

from adapter.decoding.acceptance import accept

TARGET = np.array([0.30, 0.05, 0.25, 0.22, 0.18])  # the last two are hidden
SOURCE = np.array([0.10, 0.40, 0.20, 0.05, 0.25])
SHOWN = 3


def emitted(target, source, hidden, draws=60_000, seed=5):
    """Counts of what comes out when the draft is drawn from `source`."""
    random = np.random.default_rng(seed)
    drafted = random.choice(len(source), size=draws, p=source)
    out = [accept(target, source[:SHOWN], hidden, int(x), random) for x in drafted]
    return np.bincount(out, minlength=len(target))


def p_value(counts, target):
    return chisquare(counts, target * counts.sum()).pvalue


def test_what_comes_out_follows_the_target():
    assert p_value(emitted(TARGET, SOURCE, hidden=0.3), TARGET) > 1e-3


def test_nothing_is_rejected_where_both_agree():
    random = np.random.default_rng(0)
    for drafted in range(SHOWN):
        assert accept(SOURCE, SOURCE[:SHOWN], 0.3, drafted, random) == drafted


def test_without_an_imputed_tail_no_hidden_token_comes_out():
    target = np.array([0.5, 0.3, 0.2])
    counts = emitted(target, SOURCE, hidden=0.3)
    assert len(counts) == 3
    assert p_value(counts, target) > 1e-3


@pytest.mark.parametrize(
    ("name", "source", "hidden"),
    [
        ("the source of another temperature", SOURCE**2 / (SOURCE**2).sum(), 0.3),
        ("a hidden mass that is not the tail's", SOURCE, 0.6),
    ],
)
def test_a_wrong_source_is_caught(name, source, hidden):
    random = np.random.default_rng(5)
    drafted = random.choice(len(SOURCE), size=60_000, p=SOURCE)
    out = [accept(TARGET, source[:SHOWN], hidden, int(x), random) for x in drafted]
    assert p_value(np.bincount(out, minlength=5), TARGET) < 1e-6, name


def test_a_hidden_draft_for_another_hidden_token_is_not_its_own():
    """H says that some hidden token comes, drawn anew; the drafted one has no privilege."""
    random = np.random.default_rng(1)
    target = np.array([0.0, 0.0, 0.0, 0.9, 0.1])
    out = [accept(target, SOURCE[:SHOWN], 0.3, 4, random) for _ in range(20_000)]
    assert p_value(np.bincount(out, minlength=5)[3:], np.array([0.9, 0.1])) > 1e-3
