"""What is known of providers and servers before anything is asked; the data is profiles.json."""

import json
from collections.abc import Collection, Mapping
from dataclasses import dataclass, field
from functools import cache
from importlib.resources import files
from typing import Any, Literal

import httpx


@dataclass(frozen=True, slots=True)
class Profile:
    """A provider or server: fields of Capabilities, `source` read in its code, spec or answers.

    `unverified` holds the rest: guesses, or None. `sends`: fields that every question needs there;
    `omits`: fields that some models refuse there, whatever they say. It is found by the host of a
    base URL, or by the owner that a server gives its models.
    """

    name: str
    hosts: tuple[str, ...]
    owners: tuple[str, ...]
    endpoint: Literal["completions", "chat"]
    note: str
    source: Mapping[str, Any]
    unverified: Mapping[str, Any]
    sends: Mapping[str, Any] = field(default_factory=dict)
    omits: tuple[str, ...] = ()


@cache
def profiles() -> tuple[Profile, ...]:
    """All of them."""
    told = json.loads(files("adapter.upstream").joinpath("profiles.json").read_text("utf-8"))
    return tuple(
        Profile(name, **one | {k: tuple(one.get(k, ())) for k in ("hosts", "owners", "omits")})
        for name, one in told.items()
    )


def profile_of(base_url: str, owner: str | None = None, chat: bool = False) -> Profile | None:
    """The one a host or an owner names; `chat`: of its chat API."""
    host = httpx.URL(base_url).host
    named = [p for p in profiles() if any(host == h or host.endswith(f".{h}") for h in p.hosts)]
    named = named or [p for p in profiles() if owner in p.owners]
    if chat:
        return next((p for p in named if p.endpoint == "chat"), None)
    return next((p for p in named if p.endpoint == "completions"), named[0] if named else None)


def always_sent(base_url: str) -> Mapping[str, Any]:
    """The fields that every chat needs there: OpenRouter drops what a provider does not know."""
    profile = profile_of(base_url, chat=True)
    return {} if profile is None else profile.sends


def never_sent(base_url: str) -> Collection[str]:
    """The fields that no chat may have there: OpenAI's newer models refuse penalties, 0 too."""
    profile = profile_of(base_url, chat=True)
    return () if profile is None else profile.omits
