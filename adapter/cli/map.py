"""`adapter map`: build, look at and verify the maps between two vocabularies."""

import json
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import asdict
from importlib.resources import files
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from adapter.errors import AdapterError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from rich.console import Console
    from rich.progress import Progress

    from tokenizer_maps.map import TokenMap
    from tokenizer_maps.verify import Check

app = typer.Typer(
    help="How the tokens of a hosted model's vocabulary lie in the pair's.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

_SPEC = "hf:PATH, tiktoken:NAME, sentencepiece:FILE or gguf:FILE"
Upstream = Annotated[str, typer.Argument(help=f"The hosted model's tokenizer: {_SPEC}.")]
Pair = Annotated[str, typer.Argument(help="The pair's tokenizer, likewise.")]
AsJson = Annotated[bool, typer.Option("--json", help="Print one JSON object.")]
Corpus = Annotated[
    list[Path] | None,
    typer.Option(help="A text, or a folder of .py, .md, .rst and .txt files; may be repeated."),
]


class MapFailed(AdapterError):
    """A tokenizer or a map file cannot be used, or a map does not hold."""


@app.command("build")
def build(
    upstream: Upstream,
    pair: Pair,
    out: Annotated[
        Path | None, typer.Option(help="Put the file here, instead of where the service looks.")
    ] = None,
) -> None:
    """Build a map anew and say where it is; the service builds what is missing by itself.

    Example: adapter map build tiktoken:cl100k_base hf:./experts/base
    """
    from tokenizer_maps.map import file_name

    made = _built(upstream, pair)
    folder = out or _folder()
    path = folder / file_name(made.upstream, made.pair)
    with _failing():
        try:
            folder.mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise MapFailed(
                f"{folder} cannot be made ({error}): name another with --out"
            ) from error
        made.save(path)
    typer.echo(path)


@app.command("show")
def show(
    what: Annotated[
        list[str] | None,
        typer.Argument(metavar="FILE | UPSTREAM PAIR", help=f"A .tkmap, or two of {_SPEC}."),
    ] = None,
    corpus: Corpus = None,
    known: Annotated[
        bool, typer.Option("--known", help="What to expect of some pairs of vocabularies.")
    ] = False,
    json_output: AsJson = False,
) -> None:
    """Show how much of one vocabulary another covers: in types, and with --corpus in text.

    Examples: adapter map show tiktoken:o200k_base hf:./experts/base --corpus ./docs,
    adapter map show FILE.tkmap, adapter map show --known
    """
    given = what or []
    if known + bool(given) != 1 or len(given) > 2 or (corpus and len(given) != 2):
        raise typer.BadParameter(
            "give a FILE, or UPSTREAM and PAIR (only then --corpus), or --known"
        )
    if known:
        shown: dict[str, Any] = {"known": _known()}
    elif len(given) == 1:
        shown = _facts(Path(given[0]))
    else:
        shown = _compared(given[0], given[1], corpus)
    if json_output:
        typer.echo(json.dumps(shown))
    else:
        _print(shown)


@app.command("verify")
def verify(
    upstream: Upstream,
    pair: Pair,
    corpus: Corpus = None,
    samples: Annotated[
        int, typer.Option(min=10, help="Random substrings a vocabulary and kind of text.")
    ] = 2000,
    json_output: AsJson = False,
) -> None:
    """Check a map and both vocabularies on real text; exit code 1 if anything fails.

    Random substrings must survive encoding, ranges agree with a linear scan, rows and first tokens
    with encoding anew. Then the coverage is shown by kind of text.

    Example: adapter map verify tiktoken:cl100k_base hf:./experts/base --corpus ./docs
    """
    from tokenizer_maps import verify as checks

    if not corpus:
        raise typer.BadParameter("name some text with --corpus")
    with _failing():
        texts = checks.read_corpus(corpus)
    made = _built(upstream, pair)
    with _progress() as progress:
        bar = progress.add_task("checking", total=checks.steps(texts))
        found = list(
            checks.verify(made, texts, samples, progress=lambda: progress.update(bar, advance=1))
        )
    lines = list(checks.running(made, texts))
    if json_output:
        shown = {"checks": [asdict(c) for c in found], "running": [asdict(r) for r in lines]}
        typer.echo(json.dumps(shown))
    else:
        _print_checks(found)
        _print_running([asdict(line) for line in lines])
    failed = sum(check.failed for check in found)
    if failed:
        raise MapFailed(f"{failed} checks failed: this pair of vocabularies cannot be used")


@contextmanager
def _failing() -> Iterator[None]:
    """What the tokenizer maps refuse, as an error of the command."""
    from tokenizer_maps.errors import TokenizerMapError

    try:
        yield
    except TokenizerMapError as error:
        raise MapFailed(str(error)) from error


@contextmanager
def _progress() -> "Iterator[Progress]":
    """A bar on stderr, which shows only what takes longer than two seconds."""
    from rich.console import Console
    from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

    columns = (TextColumn("{task.description}"), BarColumn(), TimeElapsedColumn())
    began = time.monotonic()

    class Late(Progress):
        def get_renderables(self) -> Any:
            if time.monotonic() - began > 2:
                yield from super().get_renderables()

    with Late(*columns, console=Console(stderr=True), transient=True) as progress:
        yield progress


def _built(upstream: str, pair: str) -> "TokenMap":
    """The map of two tokenizers, never read from a file."""
    from tokenizer_maps.loading import KINDS, load_vocabulary
    from tokenizer_maps.map import TokenMap

    for spec in (upstream, pair):
        kind, _, where = spec.partition(":")
        if kind not in KINDS or not where:
            raise typer.BadParameter(f"{spec!r} is none of {_SPEC}")
    with _failing(), _progress() as progress:
        bar = progress.add_task("reading", total=3)
        vocabularies = []
        for spec in (upstream, pair):
            vocabularies.append(load_vocabulary(spec))
            progress.update(bar, advance=1)
        progress.update(bar, description="comparing")
        return TokenMap.build(*vocabularies)


def _folder() -> Path:
    from adapter.settings import maps_directory

    return maps_directory()


def _known() -> Any:
    return json.loads(files("tokenizer_maps").joinpath("known.json").read_text("utf-8"))


def _facts(file: Path) -> dict[str, Any]:
    from tokenizer_maps.map import read_facts

    with _failing():
        return read_facts(file)


def _compared(upstream: str, pair: str, corpus: list[Path] | None) -> dict[str, Any]:
    from tokenizer_maps.verify import read_corpus, running

    with _failing():
        texts = read_corpus(corpus) if corpus else {}
    made = _built(upstream, pair)
    shown = {
        "upstream": made.upstream.fingerprint,
        "pair": made.pair.fingerprint,
        "coverage": asdict(made.coverage),
    }
    return shown | ({"running": [asdict(r) for r in running(made, texts)]} if texts else {})


def _print(shown: dict[str, Any]) -> None:
    if "known" in shown:
        _print_known(shown["known"])
        return
    coverage = shown["coverage"]
    _print_shapes(coverage["upstream"], coverage["pair"])
    tokens = max(1, coverage["upstream"]["tokens"])
    console = _console()
    console.print(
        f"upstream tokens that are one pair token   {_share(coverage['exact'] / tokens)}\n"
        f"upstream tokens no single token covers    {_share(coverage['uncovered'] / tokens)}\n"
        f"nested: {_yes(coverage['nested'])}   identical: {_yes(coverage['identical'])}\n"
        f"fingerprints: {shown['upstream'][:16]} (upstream), {shown['pair'][:16]} (pair)"
    )
    if "running" in shown:
        _print_running(shown["running"])


def _print_shapes(upstream: dict[str, Any], pair: dict[str, Any]) -> None:
    names = {
        "tokens": "tokens",
        "added": "added tokens",
        "duplicates": "tokens that spell what another does",
        "mean": "mean length in bytes",
        "p99": "99 of 100 no longer than",
        "longest": "longest",
        "long": "longer than 16 bytes",
        "invalid": "no UTF-8 by themselves",
    }
    rows = [
        [title, *(_cell(one, name) for one in (upstream, pair))] for name, title in names.items()
    ]
    _table(["", "upstream", "pair"], rows)


def _cell(one: dict[str, Any], name: str) -> str:
    if name == "long":
        return _share(one["long"] / max(1, one["tokens"]))
    return f"{one[name]:.2f}" if name == "mean" else f"{one[name]:,}"


def _print_running(lines: list[dict[str, Any]]) -> None:
    names = ["text", "KB", "upstream tokens", "in the pair", "ends aligned", "first token right"]
    rows = [
        [line["kind"], f"{line['size'] / 1000:.0f}", f"{line['tokens']:,}"]
        + [_share(line[name]) for name in ("known", "aligned", "first")]
        for line in lines
    ]
    _table(names, rows)


def _print_checks(checks: "list[Check]") -> None:
    rows = [
        [check.name, f"{check.tested:,}", f"{check.failed:,}", ", ".join(check.examples)]
        for check in checks
    ]
    _table(["check", "tested", "failed", "first failures"], rows)


def _print_known(pairs: list[dict[str, Any]]) -> None:
    for known in pairs:
        typer.echo(
            f"{known['upstream']} → {known['pair']}: {_share(known['exact'])} exact, "
            f"{_share(known['uncovered'])} uncovered; nested: {_yes(known['nested'])}\n"
            f"    digits: {known['digits']}\n    {known['expect']}"
        )


def _table(names: list[str], rows: list[list[str]]) -> None:
    from rich.table import Table
    from rich.text import Text

    table = Table()
    for n, name in enumerate(names):
        table.add_column(name, justify="right" if rows[0][n][:1].isdigit() else "left")
    for row in rows:
        table.add_row(*map(Text, row))  # Text: no markup in what a corpus holds
    _console().print(table)


def _console() -> "Console":
    from rich.console import Console

    return Console(highlight=False)


def _share(value: float) -> str:
    return f"{100 * value:.1f} %"


def _yes(value: bool) -> str:
    return "yes" if value else "no"
