"""adapter evaluate: what steering gains and costs, measured on a suite of tasks."""

import asyncio
import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from collections.abc import Callable

    from adapter.evaluation.evaluate import Moment
    from adapter.evaluation.outcomes import Outcome
    from adapter.evaluation.suite import Suite
    from adapter.settings import Settings

    Watch = Callable[[Moment], None]


def evaluate(
    settings: Annotated[Path, typer.Argument(help="The settings file, as for serve.")],
    suite: Annotated[Path, typer.Argument(help="What is asked: models, strengths and tasks.")],
    *,
    out: Annotated[Path, typer.Option(help="The run's folder: outcomes, report and plots.")],
    limit: Annotated[
        int | None, typer.Option(min=1, help="At most so many items of each task.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the results.")] = False,
) -> None:
    """Ask the hosted model alone and adapted, and the pair by itself; write report.md.

    The upstream is asked once for all strengths. Killed, the same command goes on where it was;
    with more strengths or items it asks only those.

    Example: adapter evaluate adapter.yaml suite.yaml --out ./runs/news
    """
    from adapter.evaluation.suite import load_suite
    from adapter.settings import load_settings

    asked, known = load_suite(suite), load_settings(settings)
    with _progress() as watch:
        outcomes = asyncio.run(_evaluate(asked, known, out, limit, watch))
    if as_json:
        typer.echo(json.dumps([asdict(one) for one in outcomes]))
        return
    typer.echo(_summary(outcomes))


async def _evaluate(
    suite: "Suite", settings: "Settings", out: Path, limit: int | None, watch: "Watch"
) -> "list[Outcome]":
    from adapter.adapter import Adapter
    from adapter.evaluation.evaluate import evaluate as run
    from adapter.evaluation.evaluate import items_of, systems_of
    from adapter.evaluation.facts import facts_of
    from adapter.evaluation.store import Store

    adapter = await asyncio.to_thread(Adapter.from_settings, settings)
    try:
        systems, fits = systems_of(suite, adapter)
        asked = [(task, items_of(task, fits, limit)) for task in suite.tasks]
        with Store(out, await asyncio.to_thread(facts_of, suite, settings)) as store:
            await run(systems, asked, store, watch)
            return store.outcomes
    finally:
        await adapter.close()


def _summary(outcomes: "list[Outcome]") -> str:
    from adapter.evaluation.outcomes import result

    named = dict.fromkeys((one.task, one.system, one.alpha) for one in outcomes)
    lines = []
    for task, system, alpha in named:
        own = [o for o in outcomes if (o.task, o.system, o.alpha) == (task, system, alpha)]
        who = system if alpha is None else f"{system}, α = {alpha:g}"
        lines.append(f"{task}: {who}: {result(own):.4f} of {len(own)} items")
    return "\n".join(lines)


@contextmanager
def _progress() -> "Iterator[Watch]":
    """A bar with the time left, on stderr."""
    from rich.console import Console
    from rich.progress import (
        BarColumn,
        MofNCompleteColumn,
        Progress,
        TextColumn,
        TimeElapsedColumn,
        TimeRemainingColumn,
    )

    columns = (
        TextColumn("{task.description}"),
        *(BarColumn(), MofNCompleteColumn(), TimeElapsedColumn()),
        *(TextColumn("left"), TimeRemainingColumn()),
    )
    console = Console(stderr=True, highlight=False, soft_wrap=True)
    with Progress(*columns, console=console, transient=True) as progress:
        bar = progress.add_task("reading models and data", total=None)

        def watch(moment: "Moment") -> None:
            progress.update(
                bar, completed=moment.done, total=moment.total, description=moment.about
            )

        yield watch
