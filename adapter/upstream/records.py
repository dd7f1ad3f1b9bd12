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

_VERSION = 1
_FOLDER = "upstreams"

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

    `api` is the dialect that works, None where none of ours does: `reason` says why.
    """

    base_url: str
    model: str
    api: Literal["completions", "llama.cpp"] | None
    reason: str
    calls: int
    profile: str | None
    findings: Mapping[str, Finding]

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

    def usable(self) -> Literal["completions", "llama.cpp"]:
        """The dialect to use. Raises UpstreamMalformed with the reason where there is none."""
        if self.api is None:
            raise UpstreamMalformed(
                f"{self.model} at {self.base_url}: {self.reason} (`adapter probe` asks again)"
            )
        return self.api

    def narrow(self, dialect: Capabilities) -> Capabilities:
        """A dialect's capabilities, less what was found missing here, and the facts found."""
        drawn = self.value("before_temperature") is not False and self.value("named_by") != "text"
        scoring = dialect.scoring if self.value("scoring") == dialect.scoring else None
        told = self.value("text_scoring")
        facts = {
            field: found.value
            for field, found in self.findings.items()
            if found.how == "measured" and field not in _DIALECT
        }
        return replace(
            dialect,
            end_visible=dialect.end_visible and self.value("end_visible") is not False,
            every_step_shown=self._shows_all(dialect),
            rejection=dialect.rejection and self._shows_all(dialect) and drawn,
            scoring=scoring,
            text_scoring=dialect.text_scoring if told in (None, "echo") else told,
            streams=dialect.streams and self.value("streamed_logprobs") is not False,
            **facts,
        )

    def _shows_all(self, dialect: Capabilities) -> bool:
        return dialect.every_step_shown and self.value("every_step_shown") is not False

    def save(self, folder: Path) -> Path:
        """Write the record where `load` finds it, whole or not at all. Raises OSError."""
        path = _path(folder, self.base_url, self.model)
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
)


def load(folder: Path, base_url: str, model: str) -> Record | None:
    """The saved record, None where there is none that can be read."""
    try:
        told = json.loads(_path(folder, base_url, model).read_text("utf-8"))
        if told.pop("version") != _VERSION:
            return None
        told.pop("tier")
        findings = {name: Finding(**one) for name, one in told.pop("findings").items()}
        record = Record(**told, findings=findings)
    except (OSError, ValueError, TypeError, KeyError, AttributeError):
        return None
    return record if (record.base_url, record.model) == (base_url, model) else None


def _path(folder: Path, base_url: str, model: str) -> Path:
    named = hashlib.sha256(json.dumps([base_url, model]).encode()).hexdigest()
    return folder / _FOLDER / f"{named[:32]}.json"
