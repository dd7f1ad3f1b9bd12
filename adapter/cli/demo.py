"""`adapter demo`: the product's main job, on real parts, measured."""

import json
import signal
from itertools import groupby
from operator import itemgetter
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any
from urllib.parse import urlencode

import typer

if TYPE_CHECKING:
    from rich.console import Console

    from adapter.demo.asking import Reply
    from adapter.demo.run import Replies
    from adapter.demo.stage import Stage

_SHOWN = 6
_NAMES = {
    "hosted": "hosted",
    "adapted": "adapted, top 20 shown",
    "adapted_whole": "adapted, all shown",
    "tuned": "hosted, truly tuned",
    "expert": "expert alone",
}


def demo(
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
    keep: Annotated[
        bool, typer.Option("--keep", help="Leave all servers running and say how to call them.")
    ] = False,
    questions: Annotated[
        int | None, typer.Option(min=2, help="Ask only so many, half of them on new facts.")
    ] = None,
    expert: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Another expert than the shipped one, fully tuned."),
    ] = None,
    write_example: Annotated[
        Path | None,
        typer.Option(metavar="DIR", help="Only write bulletins, questions, settings and a suite."),
    ] = None,
) -> None:
    """Steer a hosted model with a pair a third its size, and measure what it learnt.

    All models know a fictional world up to 1205; only the expert has read the bulletins of 1206.
    llama.cpp's server plays the hosted model, and the service reaches it only over HTTP.

    Examples: adapter demo --json

    adapter demo --write-example ./almanac
    """
    if write_example is not None:
        from adapter.demo.example import write_example as write

        typer.echo(f"{write(write_example):,} bulletins, questions and settings in {write_example}")
        return
    from rich.console import Console
    from rich.progress import Progress

    from adapter.demo.almanac import questions as almanac_questions
    from adapter.demo.report import summary
    from adapter.demo.run import ask_everyone
    from adapter.demo.stage import EXPERT, stage

    screen = Console(stderr=json_output, highlight=False)
    new, old = (q[: questions // 2] if questions else q for q in almanac_questions())
    screen.print("Starting two engines and the service ...")
    with stage(expert or EXPERT) as live:
        with Progress(console=screen, transient=True) as progress:
            total = 5 * len(new) + 4 * len(old)
            bar = progress.add_task("asking", total=total)

            def done(system: str) -> None:
                progress.update(bar, advance=1, description=_NAMES[system])

            replies = ask_everyone(live, new, old, done)
        result = summary(replies.new, replies.old, replies.seconds)
        if json_output:
            typer.echo(json.dumps(result))
        else:
            _show(screen, result, replies)
        if keep:
            _hold(screen, live)


def _show(screen: "Console", result: dict[str, Any], replies: "Replies") -> None:
    from rich.table import Table

    table = Table(title=f"{result['questions']} questions, none of them ever trained on")
    table.add_column("system")
    table.add_column("facts of 1206 (new)", justify="right")
    table.add_column("facts up to 1205 (old)", justify="right")
    for system, name in _NAMES.items():
        shares = (result[age].get(system) for age in ("new", "old"))
        table.add_row(name, *("" if s is None else f"{100 * s:.1f} %" for s in shares))
    screen.print(table)
    for key, label in (("gap_closed", "top 20"), ("gap_closed_whole_vocabulary", "all shown")):
        low, high = result[f"{key}_interval"]
        screen.print(
            f"gap closed ({label}): {100 * result[key]:.1f} % "
            f"(95 % interval {100 * low:.1f} to {100 * high:.1f})"
        )
    screen.print(f"upstream calls per token: {result['calls_per_token']:.2f}")
    screen.print(
        f"{result['seconds']:.0f} s\n\nWhat steering changed is [in brackets]:", markup=False
    )
    systems = ("hosted", "adapted", "tuned")
    for answers in list(zip(*(replies.new[s] for s in systems), strict=True))[:_SHOWN]:
        _show_answers(screen, dict(zip(systems, answers, strict=True)))


def _show_answers(screen: "Console", answers: "dict[str, Reply]") -> None:
    from rich.text import Text

    from adapter.demo.report import spelt

    question = answers["hosted"].question
    screen.print(f"\n{question.prompt.splitlines()[0]}  ({question.answer.strip()})")
    adapted = Text("  adapted     ")
    for changed, tokens in groupby(spelt(answers["adapted"]), key=itemgetter(1)):
        text = "".join(token for token, _ in tokens)
        # Brackets, because colours do not survive a pipe.
        gap = " " * text.startswith(" ")
        adapted.append(f"{gap}[{text.strip()}]" if changed else text, "bold" if changed else "")
    screen.print(Text("  hosted      ") + Text(answers["hosted"].text))
    screen.print(adapted)
    screen.print(Text("  truly tuned ") + Text(answers["tuned"].text))


def _hold(screen: "Console", live: "Stage") -> None:
    """Keep the servers until the user ends them."""
    from adapter.demo.stage import STEERED

    prompt = "Question: Who is the chancellor of Marvania in 1206?\nAnswer:"
    body = json.dumps(
        {
            "model": STEERED,
            "prompt": prompt,
            "max_tokens": 16,
            "temperature": 0,
            "steering": {"alpha": 1.0, "trace": True},
        }
    )
    screen.print(f"\nThe service listens at {live.service}, the hosted model at {live.hosted}.")
    screen.print(f"Settings: {live.settings}\n\nTry:", markup=False)
    screen.print(
        f"curl {live.service}/completions -H 'content-type: application/json' -d '{body}'",
        markup=False,
        soft_wrap=True,
    )
    page = f"{live.service.removesuffix('v1')}#{urlencode({'model': STEERED, 'prompt': prompt})}"
    screen.print(f"\nOr look at it: {page}", markup=False, soft_wrap=True)
    screen.print("\nCtrl-C ends all of them.")
    ends = {signal.SIGINT, signal.SIGTERM}
    signal.pthread_sigmask(signal.SIG_BLOCK, ends)  # sigwait needs them blocked
    signal.sigwait(ends)
