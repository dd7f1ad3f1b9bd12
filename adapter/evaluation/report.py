"""Report: everything that was measured, as one page of Markdown."""

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapter.evaluation.fitting import Fit
from adapter.evaluation.measured import (
    FITTED,
    TEXT,
    TUNED,
    Comparison,
    Measured,
    compared,
    measured,
    overall_gaps,
)
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.places import places
from adapter.statistics import Interval

_KINDS = {
    "answers": "questions, multiple choice by the log-likelihood of each answer",
    "labels": "questions, multiple choice by label",
    "generation": "questions, answers generated",
    TEXT: "pieces of text, bits per byte",
}
_NOTES = (
    "Intervals are of 95 %: Wilson's of a share; of anything else percentile bootstrap, 10,000 "
    "resamples of the items, the same ones for all systems that are compared. *p*: exact McNemar "
    "test against the hosted model on the items both were asked; it is not corrected for the "
    "number of rows.",
    "The best of several α, picked after the fact, flatters; the cross-fitted row takes the α of "
    "each half of the items from the other half.",
    "Gap closed: (steered − hosted) / (tuned − hosted).",
    "*Changed*: tokens that are not the hosted model's own favourite, of all steered. *Certified*: "
    "nothing hidden by the hosted model can have mattered; *expanded*: what could have was scored; "
    "*truncated*: it may have. One pass over the hosted model serves it alone and at all α: what "
    "that took stands with the first of them. Seconds are those of all items added up, several of "
    "which are asked at once.",
)
PLOTS = ("results", "alpha", "places")
_STATUSES = ("certified", "expanded", "truncated")
_FREE = ("labels", "generation")
"""Kinds in which a token can change; in the others all are given."""


@dataclass(frozen=True, slots=True)
class TaskInfo:
    """What a report must know of a task."""

    name: str
    kind: str
    lower_is_better: bool


def plot_file(task: TaskInfo, plot: str) -> str:
    """The name of a task's plot, one of PLOTS, as a file beside the page."""
    name = re.sub(r"[^\w.]+", "-", task.name)
    return f"{name}-{plot}.png"


def report(
    tasks: Sequence[TaskInfo],
    outcomes: Sequence[Outcome],
    fitted: Mapping[str, Fit],
    about: Mapping[str, str],
    plots: Sequence[Path] = (),
) -> str:
    """One page: what was run, an overview, and each task.

    `fitted` is by task; `about` is shown as it stands; `plots` are linked by name, so they belong
    beside the page. Tasks without outcomes are said to have none.
    """
    systems = {
        task.name: measured(
            task.kind, [one for one in outcomes if one.task == task.name], fitted.get(task.name)
        )
        for task in tasks
    }
    asked = [task for task in tasks if systems[task.name]]
    lines = ["# Evaluation", "", *(f"- {key}: {value}" for key, value in about.items()), ""]
    lines += [f"- {task.name}: nothing was asked" for task in tasks if task not in asked]
    if asked:
        lines += _overview(asked, systems)
    for task in asked:
        named = [path for path in plots if path.name in {plot_file(task, p) for p in PLOTS}]
        lines += _task(task, systems[task.name], named)
    lines += ["## How to read this", "", *(f"{note}\n" for note in _NOTES)]
    return "\n".join(lines)


def _overview(tasks: Sequence[TaskInfo], systems: Mapping[str, Sequence[Measured]]) -> list[str]:
    """All systems and strengths by task."""
    rows: dict[tuple[str, str], dict[str, str]] = {}
    for task in tasks:
        for one in systems[task.name]:
            strength = "fitted" if one.system == FITTED else _alphas(one)
            rows.setdefault((one.system, strength), {})[task.name] = _number(task, one.result)
    gaps = {
        (system, "fitted" if alpha is None else f"{alpha:g}"): _share(gap)
        for (system, alpha), gap in overall_gaps([systems[task.name] for task in tasks]).items()
    }
    head = ["system", "α", *(task.name + " ↓" * task.lower_is_better for task in tasks)]
    body = [
        [
            *key,
            *(cells.get(task.name, "") for task in tasks),
            *([gaps.get(key, "")] if gaps else []),
        ]
        for key, cells in rows.items()
    ]
    title = "gap closed" if len(tasks) == 1 else "gap closed, mean"
    return ["## Overview", "", *_table([*head, *([title] if gaps else [])], body), ""]


def _task(task: TaskInfo, systems: Sequence[Measured], plots: Sequence[Path]) -> list[str]:
    items = {one.item for system in systems for one in system.outcomes}
    better = "lower" if task.lower_is_better else "higher"
    lines = [f"## {task.name}", "", f"{len(items):,} {_KINDS[task.kind]}; {better} is better.", ""]
    beside = compared(task.kind, systems)
    lines += _results(task, systems, beside)
    short = [one for one in systems if len(one.outcomes) < len(items)]
    if short:
        missing = (f"{_name(one)} {len(items) - len(one.outcomes):,}" for one in short)
        lines += [f"Left out, because there is no outcome: {', '.join(missing)}.", ""]
    if _gapless(systems, beside):
        lines += ["Tuned and hosted cannot be told apart here: their gap closed says little.", ""]
    lines += _effort(task, systems) + _where(task, systems)
    for path in plots:
        lines += [f"![{path.stem}]({path.name})", ""]
    return lines


def _results(
    task: TaskInfo, systems: Sequence[Measured], beside: Sequence[Comparison]
) -> list[str]:
    head = ["system", "α", "n", "result (95 %)", "− hosted (95 %)", "p", "gap closed (95 %)"]
    body = [
        [
            one.system,
            _alphas(one),
            f"{len(one.outcomes):,}",
            _number(task, one.result) + _within(task, one.interval),
            _difference(task, other.difference),
            _p(other.p),
            _share(other.gap),
        ]
        for one, other in zip(systems, beside, strict=True)
    ]
    return [*_table(*_filled(head, body)), ""]


def _effort(task: TaskInfo, systems: Sequence[Measured]) -> list[str]:
    head = ["system", "α", "tokens steered", "changed", *_STATUSES, "calls", "cost", "seconds"]
    body = [
        [
            one.system,
            _alphas(one),
            *(_steering(task, one) if one.alphas else [""] * 5),
            f"{sum(outcome.calls for outcome in one.outcomes):,}",
            "" if one.cost is None else f"{one.cost:.4g}",
            f"{sum(outcome.seconds for outcome in one.outcomes):,.0f}",
        ]
        for one in systems
        if one.system != FITTED  # made of what was asked above
    ]
    return ["What it took:", "", *_table(*_filled(head, body)), ""]


def _steering(task: TaskInfo, one: Measured) -> list[str]:
    """How many tokens were steered, and the shares that changed or have a status."""
    changed = one.changed if task.kind in _FREE else None
    shares = [changed, *(one.status(status) for status in _STATUSES)]
    return [f"{one.tokens:,}", *map(_percent, shares)]


def _where(task: TaskInfo, systems: Sequence[Measured]) -> list[str]:
    """Where changed tokens sit, by strength."""
    steered = [one for one in systems if one.changed and one.system != FITTED]
    if task.kind != "generation" or not steered:
        return []
    head = ["system", "α", *(place.name for place in places(()))]
    body = [
        [one.system, _alphas(one), *(_percent(place.share) for place in places(one.outcomes))]
        for one in steered
    ]
    title = "Share of the steered tokens that changed, by their place in the answer, from 0:"
    return [title, "", *_table(head, body), ""]


def _gapless(systems: Sequence[Measured], beside: Sequence[Comparison]) -> bool:
    """Whether the tuned model may be no better than the hosted one."""
    pairs = zip(systems, beside, strict=True)
    found = next((other.difference for one, other in pairs if one.system == TUNED), None)
    return found is not None and found.low <= 0 <= found.high


def _name(one: Measured) -> str:
    return f"{one.system} at α = {_alphas(one)}" if one.alphas else one.system


def _alphas(one: Measured) -> str:
    return " / ".join(f"{alpha:g}" for alpha in one.alphas)


def _number(task: TaskInfo, value: float) -> str:
    return f"{value:.3f}" if task.kind == TEXT else f"{100 * value:.1f} %"


def _within(task: TaskInfo, interval: Interval | None) -> str:
    if interval is None:
        return ""
    if task.kind == TEXT:
        return f" ({interval.low:.3f} to {interval.high:.3f})"
    return f" ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _difference(task: TaskInfo, interval: Interval | None) -> str:
    if interval is None:
        return ""
    by, digits = (1, 3) if task.kind == TEXT else (100, 1)
    value, low, high = (
        f"{by * x:+.{digits}f}" for x in (interval.value, interval.low, interval.high)
    )
    return f"{value} ({low} to {high})"


def _share(interval: Interval | None) -> str:
    if interval is None:
        return ""
    return f"{100 * interval.value:.1f} % ({100 * interval.low:.1f} to {100 * interval.high:.1f})"


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.1f} %"


def _p(p: float | None) -> str:
    if p is None:
        return ""
    return f"{p:.2g}" if p >= 1e-4 else "< .0001"


def _filled(
    head: Sequence[str], body: Sequence[Sequence[str]]
) -> tuple[list[str], list[list[str]]]:
    """Both without the columns in which nothing stands."""
    kept = [i for i in range(len(head)) if any(row[i] for row in body)]
    return [head[i] for i in kept], [[row[i] for i in kept] for row in body]


def _table(head: Sequence[str], body: Sequence[Sequence[str]]) -> list[str]:
    rule = ["---", *["--:"] * (len(head) - 1)]
    rows = [[cell.replace("|", "\\|") for cell in row] for row in (head, rule, *body)]
    return [f"| {' | '.join(row)} |" for row in rows]
