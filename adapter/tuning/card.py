"""The run card: what an expert was made of and how, beside its weights."""

import json
import os
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapter.errors import TuningError

NAME = "card.json"
FIXED = ("base", "data", "settings")
"""The parts that must be the same for a tuning to be taken up again."""


@dataclass(frozen=True, slots=True)
class Card:
    """The card of one folder; `facts` are plain JSON values."""

    folder: Path
    facts: Mapping[str, Any]

    @property
    def done(self) -> bool:
        """Whether the weights are there."""
        return bool(self.facts["state"] == "done")

    @property
    def seconds(self) -> float:
        """Time spent so far, without what a kill has lost."""
        return float(self.facts["seconds"])

    def told(self, **facts: Any) -> "Card":
        """The card with more facts, written. Raises TuningError where that cannot be."""
        card = Card(self.folder, {**self.facts, **facts})
        fresh = self.folder / f".{NAME}.new"
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            fresh.write_text(json.dumps(card.facts, indent=2) + "\n", encoding="utf-8")
            os.replace(fresh, self.folder / NAME)
        except OSError as error:
            raise TuningError(f"{self.folder} cannot be written to: {error.strerror}") from error
        return card


def open_card(folder: Path, fixed: Mapping[str, Any]) -> Card:
    """The card of the tuning that began in this folder, or a new one, not written yet.

    Raises TuningError where the folder holds something else, or a tuning of other facts.
    """
    path = folder / NAME
    if not path.exists():
        if folder.exists() and (not folder.is_dir() or any(folder.iterdir())):
            raise TuningError(f"{folder} is not empty and holds no tuning: name another --out")
        return Card(folder, {"state": "started", "seconds": 0.0, **fixed})
    try:
        facts = json.loads(path.read_text(encoding="utf-8"))
        before = {name: facts[name] for name in (*FIXED, "state", "seconds")}
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise TuningError(f"{path} is not the card of a tuning: name another --out") from error
    now = json.loads(json.dumps(fixed))
    for name in FIXED:
        changed = list(_differences(name, before[name], now[name]))
        if changed:
            raise TuningError(
                f"{folder} holds a tuning with another {'; '.join(changed)}. Give the same again "
                "to take it up, or name another --out"
            )
    return Card(folder, facts)


def _differences(name: str, before: Any, now: Any) -> Iterator[str]:
    """Where two values differ, in words."""
    if isinstance(before, dict) and isinstance(now, dict):
        for key in sorted({*before, *now}):
            yield from _differences(f"{name}.{key}", before.get(key), now.get(key))
    elif before != now:
        yield f"{name} ({_shown(before)} there, {_shown(now)} now)"


def _shown(value: Any) -> str:
    """A value in few words; a digest or template is told apart by its beginning."""
    text = str(value)
    return text if len(text) <= 40 else f"{text[:12]}..."
