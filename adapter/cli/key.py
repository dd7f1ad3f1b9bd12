"""adapter key: a new API key and what the settings keep of it."""

import hashlib
import json
import secrets
from typing import Annotated

import typer

_PREFIX = "adapter-"
"""So that scanners for leaked secrets can know a key by its looks."""


def key(
    as_json: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Make an API key: the key is for the client, its digest for `keys` in the settings.

    Nothing is kept; who loses the key makes another. Example: adapter key
    """
    made = _PREFIX + secrets.token_urlsafe(32)
    digest = hashlib.sha256(made.encode()).hexdigest()
    if as_json:
        typer.echo(json.dumps({"key": made, "sha256": digest}))
    else:
        typer.echo(f"key:    {made}\nsha256: {digest}")
