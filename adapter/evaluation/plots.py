"""Plots: results with their intervals, over α, and where tokens changed; needs matplotlib."""

from collections.abc import Iterable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from adapter.errors import SettingsError
from adapter.evaluation.fitting import Fit
from adapter.evaluation.measured import (
    ADAPTED,
    ANTIEXPERT,
    FITTED,
    HOSTED,
    TEXT,
    TUNED,
    Measured,
    measured,
)
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.places import places
from adapter.evaluation.report import PLOTS, TaskInfo, plot_file
from adapter.statistics import Interval

if TYPE_CHECKING:
    from matplotlib.axes import Axes
    from matplotlib.figure import Figure

# Okabe and Ito's palette, which the colour-blind can tell apart.
_COLOURS = {
    HOSTED: "#000000",
    ADAPTED: "#0072B2",
    FITTED: "#56B4E9",
    TUNED: "#009E73",
    ANTIEXPERT: "#999999",
}
_EXPERTS = ("#E69F00", "#D55E00")
_MIXTURES = ("#CC79A7", "#F0E442")
_DASHES = {HOSTED: "--", TUNED: "-.", ANTIEXPERT: ":"}


def require_matplotlib() -> None:
    """Raises SettingsError where it is not installed."""
    try:
        import matplotlib  # noqa: F401
    except ImportError as error:
        raise SettingsError(
            "plots need matplotlib: pip install 'proxytune-adapter[evaluate]'"
        ) from error


def plots(
    tasks: Sequence[TaskInfo],
    outcomes: Sequence[Outcome],
    folder: Path,
    fitted: Mapping[str, Fit] | None = None,
) -> list[Path]:
    """Writes each task's PLOTS as PNG files, as far as there is something to show.

    Returns their paths; a system has the same colour in all. Raises SettingsError without
    matplotlib.
    """
    require_matplotlib()
    folder.mkdir(parents=True, exist_ok=True)
    colours = _colours(outcomes)
    written = []
    for task in tasks:
        own = [one for one in outcomes if one.task == task.name]
        systems = measured(task.kind, own, (fitted or {}).get(task.name))
        for plot, draw in zip(PLOTS, (_results, _over_alpha, _places), strict=True):
            figure = draw(task, systems, colours)
            if figure is not None:
                written.append(folder / plot_file(task, plot))
                figure.savefig(written[-1], dpi=150)
    return written


def _colours(outcomes: Iterable[Outcome]) -> dict[str, str]:
    """By system, the same for the same systems."""
    steered = {one.system for one in outcomes if one.alpha is not None} - _COLOURS.keys()
    alone = {one.system for one in outcomes if one.alpha is None} - _COLOURS.keys()
    pairs = ((sorted(steered), _MIXTURES), (sorted(alone), _EXPERTS))
    more = {name: colours[i % 2] for names, colours in pairs for i, name in enumerate(names)}
    return _COLOURS | more


def _results(
    task: TaskInfo, systems: Sequence[Measured], colours: Mapping[str, str]
) -> "Figure | None":
    """A row for each system and strength: its result and interval."""
    if not systems:
        return None
    figure, axes = _figure(task, 1.3 + 0.32 * len(systems))
    for row, one in enumerate(systems):
        axes.errorbar(
            _unit(task) * one.result,
            row,
            xerr=_bars(task, one),
            fmt="o",
            color=colours[one.system],
            capsize=3,
        )
    hosted = next((one for one in systems if one.system == HOSTED), None)
    if hosted is not None:
        axes.axvline(_unit(task) * hosted.result, color=colours[HOSTED], lw=0.8, ls="--", zorder=0)
    axes.set_yticks(range(len(systems)), [_label(one) for one in systems])
    axes.set_ylim(len(systems) - 0.5, -0.5)
    axes.grid(axis="x", alpha=0.3)
    axes.set_xlabel(_axis(task))
    return figure


def _over_alpha(
    task: TaskInfo, systems: Sequence[Measured], colours: Mapping[str, str]
) -> "Figure | None":
    """A line for each steered system, from the hosted model at 0 on; levels of what is not."""
    plain = [one for one in systems if not one.alphas]
    hosted = [one for one in plain if one.system == HOSTED]
    steered = [one for one in systems if one.alphas and one.system != FITTED]
    if len({one.alphas for one in steered}) < 2:
        return None
    figure, axes = _figure(task, 3.6)
    for name in dict.fromkeys(one.system for one in steered):
        line = [*hosted, *(one for one in steered if one.system == name)]
        at = [one.alphas[0] if one.alphas else 0.0 for one in line]
        axes.plot(at, _values(task, line), "o-", color=colours[name], label=name, zorder=3)
        if all(one.interval for one in line):
            lows, highs = zip(*(_edges(task, one) for one in line), strict=True)
            axes.fill_between(at, lows, highs, color=colours[name], alpha=0.15, lw=0)
    for one in plain:
        dashes = _DASHES.get(one.system, (0, (6, 2)))
        level = _unit(task) * one.result
        axes.axhline(level, color=colours[one.system], ls=dashes, lw=1.2, label=one.system)
    axes.set_xlabel("α")
    axes.set_ylabel(_axis(task))
    axes.grid(alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _places(
    task: TaskInfo, systems: Sequence[Measured], colours: Mapping[str, str]
) -> "Figure | None":
    """A line for each strength; the stronger, the darker."""
    steered = [one for one in systems if one.system == ADAPTED and one.changed]
    if task.kind != "generation" or not steered:
        return None
    figure, axes = _figure(task, 3.2)
    for order, one in enumerate(steered, 1):
        shares = [(p.name, 100 * p.share) for p in places(one.outcomes) if p.share is not None]
        names, values = zip(*shares, strict=True)
        shade = 0.25 + 0.75 * order / len(steered)
        axes.plot(names, values, "o-", color=colours[ADAPTED], alpha=shade, label=_label(one))
    axes.set_xlabel("place in the answer, from 0")
    axes.set_ylabel("steered tokens that changed, %")
    axes.set_ylim(bottom=0)
    axes.grid(axis="y", alpha=0.3)
    axes.legend(loc="center left", bbox_to_anchor=(1.01, 0.5), frameon=False)
    return figure


def _figure(task: TaskInfo, height: float) -> "tuple[Figure, Axes]":
    from matplotlib.figure import Figure

    figure = Figure((7.0, height), layout="constrained")
    axes = figure.add_subplot()
    axes.set_title(task.name, loc="left", fontsize=11)
    axes.spines[["top", "right"]].set_visible(False)
    return figure, axes


def _label(one: Measured) -> str:
    if one.system == FITTED:
        return one.system
    return f"{one.system}, α = {one.alphas[0]:g}" if one.alphas else one.system


def _axis(task: TaskInfo) -> str:
    unit = "bits per byte" if task.kind == TEXT else "accuracy, %"
    return f"{unit} (lower is better)" if task.lower_is_better else unit


def _unit(task: TaskInfo) -> float:
    return 1.0 if task.kind == TEXT else 100.0


def _values(task: TaskInfo, systems: Iterable[Measured]) -> list[float]:
    return [_unit(task) * one.result for one in systems]


def _edges(task: TaskInfo, one: Measured) -> tuple[float, float]:
    """The interval's ends, or the result twice."""
    interval = one.interval or Interval(one.result, one.result, one.result)
    return _unit(task) * interval.low, _unit(task) * interval.high


def _bars(task: TaskInfo, one: Measured) -> list[list[float]] | None:
    if one.interval is None:
        return None
    low, high = _edges(task, one)
    value = _unit(task) * one.result
    return [[max(0.0, value - low)], [max(0.0, high - value)]]  # rounding may cross them at 100 %
