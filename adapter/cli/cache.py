"""`adapter cache`: look at and clear the cache of a settings file."""

import asyncio
import json
import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated
from urllib.parse import urlsplit

import typer

from adapter.errors import AdapterError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.settings import CacheSettings
    from cache import Cache, Stats

app = typer.Typer(
    help="What was kept of the hosted models' answers.",
    no_args_is_help=True,
    rich_markup_mode=None,
)

SettingsFile = Annotated[
    Path, typer.Argument(help="The settings file.", metavar="SETTINGS.yaml", show_default=False)
]
UrlEnv = Annotated[
    str | None,
    typer.Option(
        metavar="NAME",
        help="A variable with a URL to use instead of cache.url, as with an operator's account.",
    ),
]

_TRIES = 20
_PAUSE = 0.1


class CacheFailed(AdapterError):
    """A cache that is not there, does not answer or may not be cleared."""


@app.command("stats")
def stats(
    settings: SettingsFile,
    url_env: UrlEnv = None,
    json_output: Annotated[bool, typer.Option("--json", help="Print one JSON object.")] = False,
) -> None:
    """Show whether the cache answers, and what it holds; of a Redis only Redis knows that.

    Hits and misses are in the service's metrics. Example: adapter cache stats adapter.yaml
    """
    found = _settings(settings, url_env)
    held = asyncio.run(_held(found))
    shown = {
        "address": _address(found.url),
        "ttl": found.ttl,
        "entries": None,
        "bytes": None,
        "size": None,
    }
    if found.url.startswith("sqlite:"):
        shown |= {"entries": held.entries, "bytes": held.bytes, "size": found.size}
    if json_output:
        typer.echo(json.dumps(shown))
        return
    typer.echo(f"{shown['address']} answers; entries live {found.ttl:g} seconds")
    if shown["entries"] is not None:
        typer.echo(f"{held.entries:,} entries, {held.bytes:,} of {found.size:,} bytes")


@app.command("clear")
def clear(
    settings: SettingsFile,
    url_env: UrlEnv = None,
    yes: Annotated[bool, typer.Option("--yes", help="Do not ask.")] = False,
) -> None:
    """Delete all entries, those of every replica; the memory of running services stays.

    A Redis account with the least rights may not do it. Example:
    OPERATOR=redis://admin:PASSWORD@HOST adapter cache clear adapter.yaml --url-env OPERATOR
    """
    found = _settings(settings, url_env)
    if not yes:
        typer.confirm(f"Delete all entries in {_address(found.url)}?", abort=True)
    typer.echo(f"{asyncio.run(_cleared(found)):,} entries deleted")


def _settings(file: Path, url_env: str | None) -> "CacheSettings":
    """The cache's own part of a settings file. Raises SettingsError and CacheFailed."""
    from adapter.settings import load_settings

    overrides: dict[tuple[str, ...], object] = {}
    if url_env is not None:
        if not os.environ.get(url_env):
            raise typer.BadParameter(f"the variable {url_env} is not set")
        overrides = {("cache", "url"): os.environ[url_env]}
    found = load_settings(file, overrides).cache
    if found.url == "none":
        raise CacheFailed("these settings have no cache (cache.url: none)")
    if found.url == "memory://":
        raise CacheFailed(
            "this cache is the memory of the running service: its metrics tell of it, and a "
            "restart clears it"
        )
    return found


async def _held(settings: "CacheSettings") -> "Stats":
    """What is there, once it has answered. Raises CacheFailed."""
    from cache import Stats

    if _not_made_yet(settings.url):
        return Stats(0, 0, 0, 0)
    cache = _opened(settings)
    try:
        for _ in range(_TRIES):
            before = cache.failures
            await cache.get(b"is anybody there")
            if cache.failures == before:
                return await cache.stats()
            await asyncio.sleep(_PAUSE)
    finally:
        await cache.close()
    raise CacheFailed(f"{_address(settings.url)} does not answer, or refuses this account")


async def _cleared(settings: "CacheSettings") -> int:
    from cache import CacheError

    if _not_made_yet(settings.url):
        return 0
    cache = _opened(settings)
    try:
        return await cache.clear()
    except CacheError as error:
        raise CacheFailed(f"{error} (see --url-env)") from None
    finally:
        await cache.close()


def _opened(settings: "CacheSettings") -> "Cache":
    from cache import CacheError, open_cache

    try:
        cache = open_cache(settings.url, settings.size, settings.ttl)
    except CacheError as error:
        raise CacheFailed(str(error)) from None
    if cache is None:
        raise RuntimeError("an address of no cache was not refused")
    return cache


def _not_made_yet(url: str) -> bool:
    """Whether it is a file that only the service should make, as it will own it."""
    kind, _, file = url.partition(":///")
    return kind == "sqlite" and not Path(file).exists()


def _address(url: str) -> str:
    """The URL without user, password and query."""
    parts = urlsplit(url)
    return f"{parts.scheme}://{parts.netloc.rpartition('@')[2]}{parts.path}"
