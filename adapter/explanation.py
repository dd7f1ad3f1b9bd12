"""Explanation: an answer for people to read, with what steering changed marked and listed."""

import math
import sys
from collections.abc import Iterator, Sequence
from io import StringIO

from rich.console import Console, ConsoleOptions, RenderableType
from rich.table import Table
from rich.text import Text

from adapter.candidates import END_NAME, Step

CHANGED = "bold magenta underline"


class Explanation:
    """The text with the changed tokens marked, and a table of them; for `print` and for rich.

    A token is changed where it is not the upstream's own favourite.
    """

    def __init__(self, text: str, steps: Sequence[Step]) -> None:
        self._text = text
        self._steps = steps

    def __rich_console__(self, _: Console, __: ConsoleOptions) -> Iterator[RenderableType]:
        yield marked(self._text, self._steps)
        changed = [step for step in self._steps if step.rank != 0]
        if not self._steps:
            yield Text("No steps: ask for a trace.", style="dim")
            return
        yield Text(
            f"\n{len(changed)} of {len(self._steps)} tokens are not the upstream's own favourite.",
            style="dim",
        )
        if changed:
            yield _table(changed)

    def __str__(self) -> str:
        """Plain, or in colour where standard output is a terminal."""
        out = StringIO()
        # None leaves it to rich, which honours NO_COLOR, TERM and the like.
        Console(file=out, force_terminal=sys.stdout.isatty() or None, highlight=False).print(self)
        return out.getvalue().rstrip("\n")


def marked(text: str, steps: Sequence[Step]) -> Text:
    """The text with every stretch marked that a changed token had a part in."""
    shown, changed = Text(), False
    for step in steps:
        changed = changed or step.rank != 0
        if step.text:
            shown.append(step.text, CHANGED if changed else None)
            changed = False
    rest = text[len(shown.plain) :]
    return shown.append(rest, CHANGED if changed else None)


def _table(changed: Sequence[Step]) -> Table:
    table = Table("token", "adapted", "upstream", "offset", "rank", "remarks")
    for step in changed:
        table.add_row(
            Text(_name(step)),
            _percent(step.logprob),
            _percent(step.upstream_logprob),
            f"{step.offset:+.2f}",
            "hidden" if step.rank is None else str(step.rank + 1),
            " ".join([step.status, *sorted(step.flags)]),
        )
    return table


def _name(step: Step) -> str:
    """A token so that its spaces, line breaks and lone bytes can be seen."""
    if step.special is not None:
        return END_NAME if step.special == "end" else step.special
    try:
        return repr(step.token.decode())
    except UnicodeDecodeError:
        return repr(step.token)[1:]


def _percent(logprob: float) -> str:
    return f"{100 * math.exp(logprob):.3g} %"
