"""What a probe has found out, and where that is kept."""

import hashlib
import json
import os
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

from adapter.errors import UpstreamMalformed
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.profiles import Profile, profile_of

_VERSION = 1
_FOLDER = "upstreams"

Api = Literal["completions", "chat", "llama.cpp"]
Tier = Literal["A", "B", "C", "D"]
TIERS: Mapping[Tier, str] = {
    "A": "exact at every position: prefixes go as ids",
    "B": "exact up to re-tokenisation: prefixes go as text",
    "C": "exact up to the first token that differs: no prefix can be continued",
    "D": "impossible: no log-probabilities of the candidates",
}

UNTRIED = "not tried further"
"""The note of a limit that may not be one."""


@dataclass(frozen=True, slots=True)
class Finding:
    """One field of Capabilities: measured, from the provider's profile, or not verified at all."""

    value: Any
    how: Literal["measured", "profile", "unverified"]
    note: str = ""


@dataclass(frozen=True, slots=True)
class Record:
    """What is known of one model at one address; holds no key and no prompt.

    `api` is the dialect that works, None where none of ours does: `reason` says why. `chat_only`:
    nothing but the chat API was looked at.
    """

    base_url: str
    model: str
    api: Api | None
    reason: str
    calls: int
    profile: str | None
    findings: Mapping[str, Finding]
    chat_only: bool = False

    def value(self, field: str) -> Any:
        """What was found of a field; None where nothing is known."""
        found = self.findings.get(field)
        return None if found is None or found.how == "unverified" else found.value

    @property
    def tier(self) -> Tier | None:
        """How far steering is exact; None where that is not known."""
        if self.value("logprobs") is False:
            return "D"
        tiers: Mapping[Any, Tier] = {"ids": "A", "text": "B", "none": "C"}
        return tiers.get(self.value("continues"))

    def granted(self, k: int) -> int:
        """How many candidates to ask for, of k wanted."""
        limit = self.value("k_limit")
        open_ended = limit is None or self.findings["k_limit"].note == UNTRIED
        return k if open_ended else min(k, limit)

    def usable(self) -> Api:
        """The dialect to use. Raises UpstreamMalformed with the reason where there is none."""
        if self.api is None:
            raise UpstreamMalformed(
                f"{self.model} at {self.base_url}: {self.reason} (`adapter probe` asks again)"
            )
        return self.api

    def narrow(self, dialect: Capabilities) -> Capabilities:
        """A dialect's capabilities, less what was found missing here, and the facts found.

        Of chat APIs the dialect knows next to nothing: what their profile says is a fact, too.
        """
        named = self.value("named_by") or dialect.named_by
        drawn = self.value("before_temperature") is not False and named not in (None, "text")
        known = ("measured", "profile") if dialect.continues_by is None else ("measured",)
        scoring = dialect.scoring if self.value("scoring") == dialect.scoring else None
        told = self.value("text_scoring")
        facts = {
            field: found.value
            for field, found in self.findings.items()
            if found.how in known and field not in _DIALECT
        }
        return replace(
            dialect,
            end_visible=dialect.end_visible and self.value("end_visible") is not False,
            every_step_shown=self._shows_all(dialect),
            rejection=dialect.rejection and self._shows_all(dialect) and drawn,
            scoring=scoring,
            text_scoring=dialect.text_scoring if told in (None, "echo") else told,
            streams=dialect.streams and self.value("streamed_logprobs") is not False,
            several=self.value("several"),
            **facts,
        )

    def _shows_all(self, dialect: Capabilities) -> bool:
        return dialect.every_step_shown and self.value("every_step_shown") is not False

    def save(self, folder: Path) -> Path:
        """Write the record where `load` finds it, whole or not at all. Raises OSError."""
        path = _path(folder, self.base_url, self.model, self.chat_only)
        path.parent.mkdir(parents=True, exist_ok=True)
        part = path.with_suffix(f".{os.getpid()}")
        part.write_text(json.dumps({"version": _VERSION} | self.as_json(), indent=1), "utf-8")
        part.replace(path)
        return path

    def as_json(self) -> dict[str, Any]:
        """The record as plain values."""
        return asdict(self) | {"tier": self.tier}


_DIALECT = (
    "end_visible",
    "every_step_shown",
    "rejection",
    "scoring",
    "text_scoring",
    "streams",
    "margin",
    "several",
)


def assumed(base_url: str, model: str) -> Record:
    """What the provider's profile says of its chat API; no `continues` where that is not known."""
    profile = profile_of(base_url, chat=True)
    name = None if profile is None else profile.name
    return Record(base_url, model, "chat", "", 0, name, filled({}, profile), chat_only=True)


def filled(findings: Mapping[str, Finding], profile: Profile | None) -> dict[str, Finding]:
    """Every field that has a finding; what was not measured is the profile's, or open."""
    if profile is None:
        return {f: findings.get(f, Finding(None, "unverified")) for f in FIELDS}
    known = {f: Finding(v, "profile", profile.name) for f, v in profile.source.items()}
    guesses = {f: Finding(v, "unverified") for f, v in profile.unverified.items()}
    return {f: (guesses | known | dict(findings))[f] for f in FIELDS}


FIELDS = (
    "logprobs", "k_limit", "continues", "continues_by", "named_by", "before_temperature",
    "before_bias", "appends", "every_step_shown", "end_visible", "scoring", "text_scoring",
    "streams", "streamed_logprobs", "reports_cached", "unknown_fields", "margin", "repeatable",
    "context", "limited_by", "several",
)  # fmt: skip
"""The fields of Capabilities that a probe or a profile can tell; `rejection` follows from them."""


def load(folder: Path, base_url: str, model: str, chat_only: bool = False) -> Record | None:
    """The saved record, None where there is none that can be read."""
    try:
        told = json.loads(_path(folder, base_url, model, chat_only).read_text("utf-8"))
        if told.pop("version") != _VERSION:
            return None
        told.pop("tier")
        findings = {name: Finding(**one) for name, one in told.pop("findings").items()}
        record = Record(**told, findings=findings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    own = (record.base_url, record.model, record.chat_only)
    return record if own == (base_url, model, chat_only) else None


def _path(folder: Path, base_url: str, model: str, chat_only: bool) -> Path:
    place = [base_url, model] + ["chat"] * chat_only
    named = hashlib.sha256(json.dumps(place).encode()).hexdigest()
    return folder / _FOLDER / f"{named[:32]}.json"
