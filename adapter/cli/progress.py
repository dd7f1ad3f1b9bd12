"""Progress: a bar with the time left on stderr, and now and then a line, for logs too."""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Protocol


class Advance(Protocol):
    """Moves the bar to `done` of `total`; a `line` is printed with the minutes left."""

    def __call__(self, done: int, total: int, about: str, line: str | None) -> None: ...


@contextmanager
def progress(beginning: str) -> Iterator[Advance]:
    """The bar from entering to leaving; `beginning` is what is done until it first moves."""
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
    with Progress(*columns, console=console, transient=True) as shown:
        bar = shown.add_task(beginning, total=None)

        def advance(done: int, total: int, about: str, line: str | None) -> None:
            shown.update(bar, completed=done, total=total, description=about)
            if line is not None:
                left = shown.tasks[0].time_remaining
                when = "" if left is None else f", {left / 60:.0f} minutes left"
                console.print(f"{line}{when}")

        yield advance
