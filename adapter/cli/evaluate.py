"""adapter evaluate: what steering gains and costs, measured on a suite of tasks."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.cli.progress import progress
from adapter.errors import SettingsError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.evaluation.evaluate import Moment, Watch
    from adapter.evaluation.fitting import Fit
    from adapter.evaluation.run import Run


_LINES = 20
"""Lines that tell how far a run is."""


class Fitted(StrEnum):
    """What can be fitted."""

    alpha = "alpha"


def evaluate(  # noqa: PLR0913 - a command's options are its arguments
    settings: Annotated[Path, typer.Argument(help="The settings file, as for serve.")],
    suite: Annotated[Path, typer.Argument(help="What is asked: a model, strengths and tasks.")],
    *,
    out: Annotated[Path, typer.Option(help="The run's folder: outcomes, report and plots.")],
    fit: Annotated[
        Fitted | None, typer.Option(help="Also the strength: cross-fitted, and the best of all.")
    ] = None,
    write: Annotated[
        bool, typer.Option("--write", help="Write the best strength into the settings file.")
    ] = False,
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many items of each task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results.")] = False,
) -> None:
    """Ask the hosted model alone and adapted, and the pair by itself; write report.md.

    The hosted model is asked once for all strengths. Killed, the same command goes on where it
    was; with more strengths or items it asks only those.

    Example: adapter evaluate adapter.yaml suite.yaml --out ./runs/news --fit alpha
    """
    if write and fit is None:
        raise typer.BadParameter("--write needs --fit alpha")
    from adapter.evaluation.plots import require_matplotlib
    from adapter.evaluation.suite import load_suite
    from adapter.settings import load_settings

    asked, known = load_suite(suite), load_settings(settings)
    require_matplotlib()  # before hours are spent
    from adapter.evaluation.run import run

    with _watching() as watch:
        found = asyncio.run(run(asked, known, out, limit, watch))
    fits = found.fits() if fit else {}
    alpha = _alpha(found) if fit else None
    page = found.tell(out, known, fits)
    if write and alpha is not None:
        from adapter.evaluation.strength import write_alpha

        write_alpha(settings, asked.model, alpha)
    results = _results(found, fits)
    if as_json:
        typer.echo(json.dumps({"results": results, "alpha": alpha, "report": str(page)}))
        return
    typer.echo("\n".join([*map(_line, results), f"{page} has more"]))
    if alpha is not None:
        done = f", written into {settings}" if write else ""
        typer.echo(f"the best strength on {asked.fitted_on.name} is α = {alpha:g}{done}")


def _alpha(found: "Run") -> float:
    try:
        return found.alpha()
    except ValueError as error:
        raise SettingsError(f"no strength can be fitted: {error}") from error


def _results(found: "Run", fits: "dict[str, Fit]") -> list[dict[str, Any]]:
    """A row a task, system and strength; those that were cross-fitted have several strengths."""
    from adapter.evaluation.outcomes import result

    named = dict.fromkeys((one.task, one.system, one.alpha) for one in found.outcomes)
    rows: list[dict[str, Any]] = []
    for key in named:
        own = [o for o in found.outcomes if (o.task, o.system, o.alpha) == key]
        names = dict(zip(("task", "system", "alpha"), key, strict=True))
        rows.append(names | {"items": len(own), "result": result(own)})
    for task, fit in fits.items():
        row: dict[str, Any] = {
            "task": task,
            "system": "adapted, cross-fitted",
            "alpha": list(fit.alphas),
        }
        rows.append(row | {"items": len(fit.outcomes), "result": fit.result})
    return rows


def _line(row: "dict[str, Any]") -> str:
    alpha = row["alpha"]
    alphas = alpha if isinstance(alpha, list) else [alpha]
    at = "" if alpha is None else f", α = {' / '.join(f'{one:g}' for one in alphas)}"
    return f"{row['task']}: {row['system']}{at}: {row['result']:.4f} of {row['items']} items"


@contextmanager
def _watching() -> "Iterator[Watch]":
    with progress("reading models and data") as advance:
        told = -1

        def watch(moment: "Moment") -> None:
            nonlocal told
            part, line = _LINES * moment.done // moment.total, None
            if told < part:
                told, line = part, f"{moment.done} of {moment.total}: {moment.about}"
            advance(moment.done, moment.total, moment.about, line)

        yield watch
