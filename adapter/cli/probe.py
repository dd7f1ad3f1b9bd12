"""adapter probe: what a hosted model shows, and what follows for steering it."""

import asyncio
import json
import os
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.errors import SettingsError
from adapter.settings import UNKNOWN

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.upstream import Endpoint
    from adapter.upstream.records import Record


@dataclass(frozen=True, slots=True)
class Target:
    """What to probe: an endpoint, and the model's tokenizer if it is known.

    `chat_only`: nothing but its chat API.
    """

    endpoint: "Endpoint"
    tokenizer: str | None
    chat_only: bool = False

    @property
    def named(self) -> str | None:
        """The tokenizer, None where nobody knows it."""
        return None if self.tokenizer == UNKNOWN else self.tokenizer


def probe(
    what: Annotated[
        str,
        typer.Argument(
            help="A base URL, with its /v1, or a settings file.", metavar="URL|SETTINGS.yaml"
        ),
    ],
    *,
    model: Annotated[
        str | None, typer.Option(help="The model; in settings, its name there.")
    ] = None,
    api_key_env: Annotated[
        str | None, typer.Option(help="The variable that holds the key, for a URL.")
    ] = None,
    tokenizer: Annotated[
        str | None,
        typer.Option(help="hf:PATH, tiktoken:NAME, sentencepiece:FILE or gguf:FILE, for a URL."),
    ] = None,
    chat: Annotated[
        bool, typer.Option("--chat", help="Look at the chat API alone, for `api: chat`.")
    ] = False,
    as_json: Annotated[bool, typer.Option("--json", help="Print the record.")] = False,
) -> None:
    """Find out what a hosted model shows, in at most 25 small calls, and keep it for `api: auto`.

    Exit code 1 where it cannot be steered. With the tokenizer more is found out.

    Examples: adapter probe news.yaml

    adapter probe http://127.0.0.1:8000/v1 --tokenizer hf:./big-model-tokenizer --json
    """
    from adapter.settings import maps_directory
    from adapter.upstream.probe import MOST_CALLS

    if what.startswith(("http://", "https://")):
        target = _of_url(what, model, api_key_env, tokenizer)
    elif api_key_env or tokenizer:
        raise typer.BadParameter("--api-key-env and --tokenizer go with a URL: settings name both")
    else:
        target = _of_settings(Path(what), model)
    if chat:
        target = replace(target, chat_only=True)
    endpoint = target.endpoint
    typer.echo(
        f"probing {endpoint.model or 'the model'} at {endpoint.host}: at most {MOST_CALLS} calls "
        "of 8 tokens or fewer",
        err=True,
    )
    record = _probed(target)
    path = record.save(maps_directory().parent)
    if as_json:
        typer.echo(json.dumps(record.as_json(), allow_nan=False))
    else:
        _print(record)
        typer.echo(f"kept in {path}")
    if record.api is None:
        typer.echo(f"adapter: it cannot be steered: {record.reason}", err=True)
        raise typer.Exit(1)


def _of_url(url: str, model: str | None, variable: str | None, tokenizer: str | None) -> Target:
    from adapter.upstream import Endpoint

    key = os.environ.get(variable) if variable else None
    if variable and not key:
        raise SettingsError(f"--api-key-env: the variable {variable} is not set")
    name = variable or "the API key (--api-key-env)"
    return Target(Endpoint(url.rstrip("/"), model or "", key, name), tokenizer)


def _of_settings(path: Path, model: str | None) -> Target:
    from adapter.model import endpoint_of
    from adapter.settings import load_settings

    settings = load_settings(path)
    names = list(settings.models)
    if model is None and len(names) == 1:
        (model,) = names
    if model not in names:
        raise typer.BadParameter(f"name one with --model: {', '.join(names)}")
    upstream = settings.models[model].upstream
    return Target(endpoint_of(model, settings), upstream.tokenizer, upstream.api == "chat")


def _probed(target: Target) -> "Record":
    from rich.console import Console

    from adapter.budget import Budget
    from adapter.upstream.probe import MOST_CALLS, probe
    from tokenizer_maps.errors import VocabularyError
    from tokenizer_maps.loading import load_vocabulary

    with Console(stderr=True).status("asking"):
        try:
            words = (
                None if target.tokenizer in (None, UNKNOWN) else load_vocabulary(target.tokenizer)
            )
        except VocabularyError as error:
            raise SettingsError(f"tokenizer: {error}") from error
        return asyncio.run(probe(target.endpoint, Budget(MOST_CALLS), words, target.chat_only))


def _print(record: "Record") -> None:
    from rich.console import Console
    from rich.table import Table
    from rich.text import Text

    from adapter.upstream.records import TIERS

    table = Table(title=f"{record.model} at {record.base_url}")
    for name in ("field", "found", "how", "what follows"):
        table.add_column(name, overflow="fold")
    for field, found in record.findings.items():
        known = found.how != "unverified"
        how = f"{found.how}: {found.note}" if found.note else found.how
        follows = _follows(field, found.value) if known else ""
        table.add_row(*map(Text, (field, _shown(found.value) if known else "?", how, follows)))
    console = Console(highlight=False)
    console.print(table)
    tier = record.tier
    console.print(f"tier: {'not known' if tier is None else f'{tier}, {TIERS[tier]}'}")
    console.print(f"use: {'none of the dialects' if record.api is None else f'api: {record.api}'}")
    console.print(f"profile: {record.profile or 'none'}; calls made: {record.calls}")


def _shown(value: Any) -> str:
    if value is None:
        return "none"
    if isinstance(value, bool):
        return "yes" if value else "no"
    return f"{value:.2g}" if isinstance(value, float) else str(value)


def _follows(field: str, value: Any) -> str:
    told = _FOLLOWS.get(field, {})
    return told.get(value, told.get(..., "")).format(value)


_FOLLOWS: Mapping[str, Mapping[Any, str]] = {
    "logprobs": {True: "can be re-weighted", False: "nothing can be steered"},
    "k_limit": {...: "top_logprobs up to {}"},
    "continues": {
        "ids": "any prefix, exactly",
        "text": "prefixes up to re-tokenisation",
        "none": "exact up to the first difference, then refused",
    },
    "named_by": {
        "ids": "every token is told apart",
        "bytes": "told apart, but for parts of characters on some servers",
        "text": "what prints alike is dropped; greedy drafts only",
    },
    "before_temperature": {
        True: "free sampling by rejection",
        False: "drafts are matched, never sampled from",
    },
    "before_bias": {True: "a forced token shows its true log-probability"},
    "appends": {True: "the token beyond k is no candidate"},
    "every_step_shown": {True: "whole drafts", False: "drafts end where a character is unfinished"},
    "end_visible": {True: "the end is steered", False: "the end is taken as it comes"},
    "scoring": {
        "chosen": "expand: hidden contenders scored, 128 a call",
        "forced": "expand: hidden contenders scored, one a call",
        None: "hidden contenders stay imputed",
    },
    "text_scoring": {
        "echo": "given text in one call",
        "forced": "given text a token a call",
        "none": "given text cannot be scored",
    },
    "streams": {True: "a cut stream costs no more"},
    "streamed_logprobs": {True: "lookahead: stream", False: "no streamed drafts"},
    "reports_cached": {True: "cached tokens are counted"},
    "unknown_fields": {"ignored": "answers are checked, not trusted"},
    "several": {True: "first drafts of unseeded choices in one call", False: "a call each"},
    "limited_by": {...: "answers are limited by {}"},
    "context": {...: "prompt and answer up to {} tokens"},
}
