"""The command line; one file a command."""

import os
import sys

# Before torch is imported: its threads spin while they wait and take the processor from others.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

import typer

from adapter.cli.cache import app as cache_commands
from adapter.cli.complete import complete
from adapter.cli.demo import demo
from adapter.cli.evaluate import evaluate
from adapter.cli.key import key
from adapter.cli.map import app as map_commands
from adapter.cli.probe import probe
from adapter.cli.serve import serve
from adapter.cli.tune import tune
from adapter.errors import AdapterError

app = typer.Typer(
    help="Tune hosted language models by proxy: steer them with a small local pair.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
    rich_markup_mode=None,
)
app.command("serve")(serve)
app.command("complete")(complete)
app.command("probe")(probe)
app.command("tune")(tune)
app.command("evaluate")(evaluate)
app.command("demo")(demo)
app.command("key")(key)
app.add_typer(map_commands, name="map")
app.add_typer(cache_commands, name="cache")


def main() -> None:
    """The `adapter` command: exit code 0 done, 1 failed, 2 wrong usage."""
    try:
        app()
    except AdapterError as error:
        typer.echo(f"adapter: {error}", err=True)
        sys.exit(1)
