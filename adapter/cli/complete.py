"""adapter complete: one completion, in process or from a running service."""

import asyncio
import json
import os
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.answers import Answer
    from adapter.questions import Options


@dataclass(frozen=True, slots=True)
class Question:
    """What to complete, and how."""

    model: str
    prompt: str
    alpha: float | None
    max_tokens: int
    temperature: float

    @property
    def options(self) -> "Options":
        """All but model and prompt."""
        options: Options = {"max_tokens": self.max_tokens, "temperature": self.temperature}
        if self.alpha is not None:
            options["alpha"] = self.alpha
        return options


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
    explain: Annotated[bool, typer.Option(help="Also list what steering changed.")] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print text, usage and steps.")] = False,
) -> None:
    """Complete a prompt; tokens that are not the upstream's own favourite are marked.

    Examples: adapter complete adapter.yaml --model news "Once upon a time"

    adapter complete --url http://127.0.0.1:8080 --model news "Once upon a time" --explain
    """
    expected = 1 if url else 2
    if len(words) != expected:
        what = "the prompt alone" if url else "a settings file and a prompt, or --url and a prompt"
        raise typer.BadParameter(f"give {what}")
    question = Question(model, words[-1], alpha, max_tokens, temperature)
    from rich.console import Console

    from adapter.explanation import marked

    with Console(stderr=True).status("completing"):
        if url:
            answer = _from_service(url, _variable(api_key_env), question)
        else:
            answer = asyncio.run(_in_process(Path(words[0]), question))
    console = Console(highlight=False, soft_wrap=not explain)
    if as_json:
        typer.echo(json.dumps(_as_json(answer), allow_nan=False))
    else:
        console.print(answer.explain() if explain else marked(answer.text, answer.steps))


def _variable(name: str | None) -> str | None:
    """The value of an environment variable that is named, which must be set."""
    if name is not None and not os.environ.get(name):
        raise typer.BadParameter(f"the variable {name} is not set")
    return os.environ[name] if name else None


def _from_service(url: str, api_key: str | None, question: Question) -> "Answer":
    from adapter.client import Client

    with Client(url, api_key) as client:
        return client.complete(model=question.model, prompt=question.prompt, **question.options)


async def _in_process(settings: Path, question: Question) -> "Answer":
    from adapter.local import Adapter

    async with Adapter.from_settings(settings) as adapter:
        return await adapter.complete(
            model=question.model, prompt=question.prompt, **question.options
        )


def _as_json(answer: "Answer") -> dict[str, Any]:
    from adapter.service.render import trace_step

    return {
        "text": answer.text,
        "finish_reason": answer.finish_reason,
        "flags": sorted(answer.flags),
        "usage": asdict(answer.usage),
        "steps": [trace_step(step, "steps") for step in answer.steps],
    }
