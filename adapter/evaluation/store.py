"""Store: the outcomes of a run in one file that a killed run goes on with."""

import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict
from pathlib import Path
from typing import IO, Any, Self

from adapter.errors import SettingsError
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.replies import Strength

FILE = "outcomes.jsonl"

_Key = tuple[str, str, float | None, str]


class Store:
    """Outcomes by task, system, strength and item; each is on disk as soon as it is added.

    `facts` are what results depend on, by name; a run with others may not go on with this file.
    """

    def __init__(self, folder: Path, facts: Mapping[str, str]) -> None:
        """Open, or begin, the file of a folder. Raises SettingsError."""
        self._path = folder / FILE
        self._found: dict[_Key, Outcome] = {}
        known: dict[str, str] = {}
        try:
            folder.mkdir(parents=True, exist_ok=True)
            self._read(known)
            known = known if self._found else {}  # whose facts an empty file has is of no account
            self._file: IO[str] = self._path.open("a" if self._found else "w", encoding="utf-8")
        except OSError as error:
            raise SettingsError(f"{self._path}: cannot be kept: {error.strerror}") from error
        self._check(known, facts)
        new = {name: fact for name, fact in facts.items() if name not in known}
        if new:
            self._write([{"facts": new}])

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._file.close()

    @property
    def outcomes(self) -> list[Outcome]:
        """All that there are, in the order they came."""
        return list(self._found.values())

    def has(self, task: str, strength: Strength, item: str) -> bool:
        """Whether an item was asked."""
        return (task, strength.system, strength.alpha, item) in self._found

    def add(self, outcomes: Sequence[Outcome]) -> None:
        """Keep some."""
        self._write([asdict(one) for one in outcomes])
        self._found |= {_key(one): one for one in outcomes}

    def _write(self, lines: Sequence[Mapping[str, Any]]) -> None:
        self._file.write("".join(json.dumps(line) + "\n" for line in lines))
        self._file.flush()

    def _read(self, known: dict[str, str]) -> None:
        """What the file holds; what a kill has left of a last line is cut off."""
        if not self._path.exists():
            return
        whole = self._path.read_bytes()
        kept = whole[: whole.rfind(b"\n") + 1]
        for number, line in enumerate(kept.splitlines(), 1):
            try:
                entry = json.loads(line)
                if "facts" in entry:
                    known |= entry["facts"]
                else:
                    one = _outcome(entry)
                    self._found[_key(one)] = one
            except (ValueError, TypeError, KeyError) as error:
                raise SettingsError(
                    f"{self._path}, line {number}: is no outcome of an evaluation; move the file "
                    "away, or choose another --out"
                ) from error
        if len(kept) < len(whole):
            with self._path.open("r+b") as file:
                file.truncate(len(kept))

    def _check(self, known: Mapping[str, str], facts: Mapping[str, str]) -> None:
        other = [name for name, fact in facts.items() if known.get(name, fact) != fact]
        if other:
            self._file.close()
            raise SettingsError(
                f"{self._path} was begun with another {', '.join(other)}: choose another --out, or "
                "put back what was changed"
            )


def _outcome(entry: Mapping[str, Any]) -> Outcome:
    lists = {name: tuple(entry[name]) for name in ("scores", "places")}
    return Outcome(**{**entry, **lists})


def _key(one: Outcome) -> _Key:
    return one.task, one.system, one.alpha, one.item
