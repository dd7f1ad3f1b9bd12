"""The report's numbers against counts by hand, and the plots as files."""

import re
import sys
from dataclasses import replace

import pytest
from matplotlib import image

from adapter.errors import SettingsError
from adapter.evaluation.fitting import cross_fitted
from adapter.evaluation.places import places
from adapter.evaluation.plots import plots
from adapter.evaluation.report import TaskInfo, report
from tests.adapter.evaluation.makings import outcomes

TASK = TaskInfo("task", "generation", lower_is_better=False)
TEXT = TaskInfo("task", "text", lower_is_better=True)


def tables(page):
    """Each table of a page as rows of cells by their column."""
    found = re.findall(r"((?:^\|.*\|\n)+)", page + "\n", re.MULTILINE)
    parted = [[line[2:-2].split(" | ") for line in one.splitlines()] for one in found]
    return [
        [dict(zip(rows[0], map(str.strip, row), strict=True)) for row in rows[2:]]
        for rows in parted
    ]


def answers(system, right, alpha=None, asked=20):
    """So many of 20 right, the first ones."""
    return outcomes(system, [1.0] * right + [0.0] * (asked - right), alpha=alpha)


def everyone():
    """The hosted model has 5 of 20 right, at α = 1 it has 10, the tuned one 15, others less."""
    return [
        *answers("tuned", 15),
        *answers("anti-expert", 2),
        *answers("adapted", 11, 2.0),
        *answers("expert news", 7),
        *answers("adapted", 10, 1.0),
        *answers("hosted", 5),
        *answers("news=1 bard=1", 8, 1.0),
    ]


def test_results_by_hand():
    _, results, _ = tables(report([TASK], everyone(), {}, {}))
    assert [(row["system"], row["α"]) for row in results] == [
        ("hosted", ""),
        ("adapted", "1"),
        ("adapted", "2"),
        ("news=1 bard=1", "1"),
        ("tuned", ""),
        ("expert news", ""),
        ("anti-expert", ""),
    ]
    hosted, adapted, *_, tuned, _, _ = results
    assert hosted["result (95 %)"] == "25.0 % (11.2 to 46.9)"  # Wilson, 5 of 20
    assert hosted["− hosted (95 %)"] == hosted["p"] == hosted["gap closed (95 %)"] == ""
    assert adapted["result (95 %)"] == "50.0 % (29.9 to 70.1)"
    assert adapted["n"] == "20"
    # Five more of 20: the quantiles of the binomial (20, ¼) are 2 and 9.
    assert adapted["− hosted (95 %)"] == "+25.0 (+10.0 to +45.0)"
    assert adapted["p"] == "0.062"  # 5 to none: 2 / 2⁵
    assert adapted["gap closed (95 %)"].startswith("50.0 % (")
    assert tuned["p"] == "0.002"  # 10 to none: 2 / 2¹⁰
    assert tuned["gap closed (95 %)"] == ""


def test_the_overview_has_every_task_and_the_mean_gap():
    other = TaskInfo("other", "text", lower_is_better=True)
    bits = {"hosted": (None, 12.0), "adapted": (1.0, 9.0), "tuned": (None, 10.0)}
    texts = [
        replace(one, task="other")
        for system, (alpha, score) in bits.items()
        for one in outcomes(system, [score] * 4, alpha=alpha, amount=4.0)
    ]
    overview = tables(report([TASK, other], [*everyone(), *texts], {}, {}))[0]
    rows = {(row["system"], row["α"]): row for row in overview}
    assert rows["hosted", ""]["task"] == "25.0 %"
    assert rows["hosted", ""]["other ↓"] == "3.000"
    assert rows["adapted", "1"]["gap closed, mean"].startswith("100.0 % (")  # of 50 % and 150 %
    assert rows["adapted", "2"]["gap closed, mean"] == ""  # not asked of the other task
    assert rows["adapted", "2"]["other ↓"] == ""


def test_a_text_is_told_in_bits_per_byte():
    asked = [
        *outcomes("hosted", [10.0, 20.0, 30.0], amount=10.0),
        *outcomes("adapted", [9.0, 19.0, 29.0], alpha=1.0, amount=10.0),
    ]
    page = report([TEXT], asked, {}, {})
    _, (hosted, adapted), _ = tables(page)
    assert "3 pieces of text, bits per byte; lower is better." in page
    assert hosted["result (95 %)"] == "2.000 (1.000 to 3.000)"
    assert adapted["− hosted (95 %)"] == "-0.100 (-0.100 to -0.100)"
    assert "p" not in adapted
    assert "gap closed (95 %)" not in adapted


def test_the_bytes_of_a_text_are_each_systems_own():
    """A tokenizer whose first, free, token is shorter leaves more bytes to be told."""
    asked = [
        *outcomes("hosted", [12.0, 12.0], amount=3.0),
        *outcomes("anti-expert", [12.0, 12.0], amount=4.0),
    ]
    _, (_, other), _ = tables(report([TEXT], asked, {}, {}))
    assert other["result (95 %)"] == "3.000 (3.000 to 3.000)"
    assert other["− hosted (95 %)"] == "-1.000 (-1.000 to -1.000)"


def test_a_bar_in_a_name_does_not_part_cells():
    page = report(
        [replace(TASK, name="a|b")], [replace(one, task="a|b") for one in everyone()], {}, {}
    )
    assert "| a\\|b |" in page


def test_one_text_alone_has_no_interval():
    asked = [*outcomes("hosted", [8.0], amount=4.0), *outcomes("tuned", [6.0], amount=4.0)]
    _, results, _ = tables(report([TEXT], asked, {}, {}))
    assert [row["result (95 %)"] for row in results] == ["2.000", "1.500"]


def test_the_cross_fitted_row():
    asked = [*answers("hosted", 5), *answers("adapted", 10, 1.0), *answers("adapted", 6, 2.0)]
    fit = cross_fitted([one for one in asked if one.alpha], {}, False)
    overview, results, took = tables(report([TASK], asked, {"task": fit}, {}))
    assert fit.alphas == (1.0, 1.0)
    assert [row["α"] for row in results] == ["", "1", "2", "1 / 1"]
    assert results[-1]["system"] == "adapted, cross-fitted"
    assert results[-1]["result (95 %)"] == results[1]["result (95 %)"]
    assert overview[-1]["α"] == "fitted"
    assert [row["system"] for row in took] == ["hosted", "adapted", "adapted"]


def test_what_is_left_out_is_said_and_comparisons_are_on_common_items():
    asked = [*answers("hosted", 5), *answers("adapted", 5, 1.0, asked=8)]
    page = report([TASK], asked, {}, {})
    assert "Left out, because there is no outcome: adapted at α = 1 12." in page
    _, (_, adapted), _ = tables(page)
    assert adapted["n"] == "8"
    assert adapted["− hosted (95 %)"] == "+0.0 (+0.0 to +0.0)"
    assert adapted["p"] == "1"


def test_a_gap_that_is_none_is_said():
    asked = [*answers("hosted", 10), *answers("adapted", 12, 1.0), *answers("tuned", 10)]
    assert "Tuned and hosted cannot be told apart here" in report([TASK], asked, {}, {})
    assert "cannot be told apart" not in report([TASK], everyone(), {}, {})


def steered():
    """Two answers of 3 and 20 tokens, of which 4 changed."""
    first, second = outcomes("adapted", [1.0, 0.0], alpha=1.0)
    status = {"certified": 2, "expanded": 1, "truncated": 0, "calls": 4, "seconds": 0.4}
    return [
        replace(first, tokens=3, places=(0, 2), cost=0.5, **status),
        replace(second, tokens=20, places=(0, 18), **(status | {"truncated": 17})),
    ]


def test_what_it_took_and_where_tokens_changed():
    hosted = [replace(one, calls=3, tokens=9) for one in outcomes("hosted", [0.0, 0.0])]
    *_, (plain, adapted), where = tables(report([TASK], [*hosted, *steered()], {}, {}))
    assert plain["calls"] == "6"
    assert plain["cost"] == plain["tokens steered"] == plain["changed"] == ""
    assert adapted["tokens steered"] == "23"
    assert adapted["changed"] == "17.4 %"
    statuses = [adapted[name] for name in ("certified", "expanded", "truncated")]
    assert statuses == ["17.4 %", "8.7 %", "73.9 %"]
    assert (adapted["calls"], adapted["cost"], adapted["seconds"]) == ("8", "0.5", "1")
    (row,) = where
    assert row["0"] == "100.0 %"
    assert row["1"] == "0.0 %"
    assert row["2"] == "50.0 %"
    assert row["17+"] == "33.3 %"  # 1 of 3


def test_places_cover_every_steered_token_once():
    found = places(steered())
    assert [place.name for place in found] == ["0", "1", "2", "3–4", "5–8", "9–16", "17+"]
    assert [place.steered for place in found] == [2, 2, 2, 2, 4, 8, 3]
    assert [place.changed for place in found] == [2, 0, 1, 0, 0, 0, 1]
    assert [place.share for place in places(())] == [None] * 7


def test_given_tokens_cannot_change():
    page = report([replace(TASK, kind="answers")], steered(), {}, {})
    assert "changed" not in tables(page)[-1][0]
    assert "by their place" not in page


def test_what_was_run_and_what_was_not():
    page = report([TASK, replace(TASK, name="empty")], everyone(), {}, {"model": "gpt-news"})
    assert "- model: gpt-news" in page
    assert "- empty: nothing was asked" in page
    assert "## empty" not in page
    assert "## Overview" not in report([TASK], [], {}, {})


def test_plots_are_there_where_there_is_something_to_show(tmp_path):
    other, labels = replace(TASK, name="a b/c"), replace(TASK, name="task-2", kind="labels")
    asked = [
        *everyone(),
        *steered(),
        *(replace(one, task="task-2") for one in answers("hosted", 5)),
    ]
    paths = plots([TASK, other, labels], asked, tmp_path / "new")
    names = ["task-results.png", "task-alpha.png", "task-places.png", "task-2-results.png"]
    assert [path.name for path in paths] == names
    assert all(image.imread(path).std() > 0.01 for path in paths)  # something is drawn
    asked += [replace(one, task="a b/c") for one in everyone()]
    paths = plots([other], asked, tmp_path)
    assert [path.name for path in paths] == ["a-b-c-results.png", "a-b-c-alpha.png"]


def test_plots_are_linked_under_their_own_task(tmp_path):
    second = replace(TASK, name="task-2")
    asked = [*everyone(), *(replace(one, task="task-2") for one in everyone())]
    page = report([TASK, second], asked, {}, {}, plots([TASK, second], asked, tmp_path))
    first_part, second_part = page.split("## task-2")
    assert re.findall(r"\]\((.*?)\)", first_part) == ["task-results.png", "task-alpha.png"]
    assert re.findall(r"\]\((.*?)\)", second_part) == ["task-2-results.png", "task-2-alpha.png"]


def test_a_plot_without_matplotlib_says_what_to_install(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "matplotlib", None)
    with pytest.raises(SettingsError, match=r"pip install 'proxytune-adapter\[evaluate\]'"):
        plots([TASK], everyone(), tmp_path)
