"""adapter complete: one completion, in process or from a running service."""

import asyncio
import json
import os
from contextlib import aclosing
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.candidates import Ending, Step

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from rich.text import Text

    from adapter.adapter import Adapter
    from adapter.client import Answer

_CHANGED = "bold magenta underline"


@dataclass(frozen=True, slots=True)
class Question:
    """What to complete, and how."""

    model: str
    prompt: str
    alpha: float | None
    max_tokens: int
    temperature: float


def complete(  # noqa: PLR0913 - a command's options are its arguments
    words: Annotated[
        list[str],
        typer.Argument(
            help="The settings file, unless --url is given, and the prompt.",
            metavar="[SETTINGS.yaml] PROMPT",
        ),
    ],
    *,
    model: Annotated[str, typer.Option(help="A model of the settings or of the service.")],
    url: Annotated[str | None, typer.Option(help="Ask a running service.")] = None,
    alpha: Annotated[float | None, typer.Option(help="Strength; default: the model's.")] = None,
    max_tokens: Annotated[int, typer.Option(min=1, help="At most this many tokens.")] = 64,
    temperature: Annotated[float, typer.Option(min=0, max=2, help="0 is greedy.")] = 0.0,
    api_key_env: Annotated[
        str | None, typer.Option(help="The name of a variable with the service's API key.")
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print text, usage and steps.")] = False,
) -> None:
    """Complete a prompt; tokens that are not the upstream's own favourite are marked.

    Examples: adapter complete adapter.yaml --model news "Once upon a time"

    adapter complete --url http://127.0.0.1:8080 --model news "Once upon a time" --json
    """
    expected = 1 if url else 2
    if len(words) != expected:
        what = "the prompt alone" if url else "a settings file and a prompt, or --url and a prompt"
        raise typer.BadParameter(f"give {what}")
    question = Question(model, words[-1], alpha, max_tokens, temperature)
    from rich.console import Console

    with Console(stderr=True).status("completing"):
        if url:
            answer = _from_service(url, _variable(api_key_env), question)
        else:
            answer = _in_process(Path(words[0]), question)
    if as_json:
        typer.echo(json.dumps(_as_json(answer), allow_nan=False))
    else:
        Console(highlight=False, soft_wrap=True).print(_marked(answer))


def _variable(name: str | None) -> str | None:
    """The value of an environment variable that is named, which must be set."""
    if name is not None and not os.environ.get(name):
        raise typer.BadParameter(f"the variable {name} is not set")
    return os.environ[name] if name else None


def _from_service(url: str, api_key: str | None, question: Question) -> "Answer":
    from adapter.client import Client, Options

    options: Options = {
        "max_tokens": question.max_tokens,
        "temperature": question.temperature,
    }
    if question.alpha is not None:
        options["alpha"] = question.alpha
    with Client(url, api_key) as client:
        return client.complete(model=question.model, prompt=question.prompt, **options)


def _in_process(settings: Path, question: Question) -> "Answer":
    from adapter.adapter import Adapter

    return asyncio.run(_run(Adapter.from_settings(settings), question))


async def _run(adapter: "Adapter", question: Question) -> "Answer":
    from adapter.client import Answer, AnswerUsage
    from adapter.request import Request, Sampling

    sampling = Sampling(max_tokens=question.max_tokens, temperature=question.temperature)
    request = Request(
        question.model, question.prompt, sampling, alpha=question.alpha, trace="steps"
    )
    try:
        job = adapter.prepare(request)
        async with aclosing(adapter.run(job, 0)) as events:
            collected = [event async for event in events]
    finally:
        await adapter.close()
    steps = tuple(event for event in collected if isinstance(event, Step))
    ending = next(event for event in collected if isinstance(event, Ending))
    usage = AnswerUsage(job.prompt_tokens, len(steps), ending.usage)
    text = "".join(event.text for event in collected)
    return Answer(text, steps, usage, ending.finish_reason, ending.flags)


def _as_json(answer: "Answer") -> dict[str, Any]:
    from adapter.service.render import trace_step

    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "flags": sorted(answer.flags),
        "usage": asdict(answer.usage),
        "steps": [trace_step(step, "steps") for step in answer.steps],
    }


def _marked(answer: "Answer") -> "Text":
    """The text with every stretch marked that a changed token had a part in."""
    from rich.text import Text

    text, changed = Text(), False
    for step in answer.steps:
        changed = changed or step.rank != 0
        if step.text:
            text.append(step.text, _CHANGED if changed else None)
            changed = False
    rest = answer.text[len(text.plain) :]
    return text.append(rest, _CHANGED if changed else None)
