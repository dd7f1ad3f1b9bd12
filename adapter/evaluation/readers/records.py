"""Records: what the lines of a public format say, before they are put into a prompt."""

import json
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.errors import SettingsError

OPEN = "Question: {question}\nAnswer:"
LABELLED = "Question: {question}\n{options}\nAnswer:"


@dataclass(frozen=True, slots=True)
class Record:
    """One question or text.

    `fields` are what a template may name; the first is the question or text itself. `options` are
    all choices and `right` the places of the right ones; `accepted` is what a generated answer may
    say. `name` is the format's own, if it has one; `place` is file and line.
    """

    place: str
    fields: Mapping[str, str]
    options: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    accepted: tuple[str, ...] = ()
    name: str = ""

    @property
    def asked(self) -> str:
        """The question or text itself."""
        return next(iter(self.fields.values()))


@dataclass(frozen=True, slots=True)
class Format:
    """How files are read, the fields of their records, and a template for each kind of task."""

    records: Callable[[Path], Iterator[Record]]
    fields: tuple[str, ...]
    templates: Mapping[str, str]

    @property
    def known(self) -> tuple[str, ...]:
        """What a template may name."""
        return (*self.fields, "options") if "labels" in self.templates else self.fields


@dataclass(frozen=True, slots=True)
class Line:
    """An object of JSONL, or a row of CSV, and where it stands."""

    path: Path
    number: int
    content: Mapping[str, Any] = field(repr=False)

    @property
    def place(self) -> str:
        """File and line, for errors."""
        return f"{self.path}, line {self.number}"

    def wrong(self, message: str) -> SettingsError:
        """The error that names file and line."""
        return SettingsError(f"{self.place}: {message}")

    def text(self, name: str) -> str:
        """A field that must be a string and say something. Raises SettingsError."""
        value = self._value(name)
        if not isinstance(value, str) or not value.strip():
            raise self.wrong(f"'{name}' must be a text that is not empty")
        return value

    def texts(self, name: str) -> tuple[str, ...]:
        """A field that must be a list of strings; or one string. Raises SettingsError."""
        value = self._value(name)
        values = [value] if isinstance(value, str) else value
        if not isinstance(values, list) or not all(isinstance(one, str) for one in values):
            raise self.wrong(f"'{name}' must be a list of texts")
        return tuple(values)

    def places(self, name: str, options: int) -> tuple[int, ...]:
        """A field that must be a list of places among the options, from 0; or one place."""
        value = self._value(name)
        values = value if isinstance(value, list) else [value]
        places = [int(one) for one in values if str(one).isdecimal()]
        if len(places) < len(values) or not all(one < options for one in places):
            raise self.wrong(f"'{name}' must list places among {options} options, from 0")
        return tuple(places)

    def _value(self, name: str) -> Any:
        if name not in self.content:
            here = ", ".join(map(str, self.content)) or "none"
            raise self.wrong(f"there is no '{name}' among its fields ({here})")
        return self.content[name]


def lines(path: Path) -> Iterator[Line]:
    """The objects of a JSONL file. Raises SettingsError."""
    for number, line in enumerate(contents(path).split("\n"), 1):  # JSON may hold other separators
        if not line.strip():
            continue
        try:
            content = json.loads(line)
        except ValueError as error:
            raise SettingsError(f"{path}, line {number}: not JSON: {error}") from error
        if not isinstance(content, dict):
            raise SettingsError(f"{path}, line {number}: not an object, as JSONL has one a line")
        yield Line(path, number, content)


def contents(path: Path) -> str:
    """The text of a file. Raises SettingsError."""
    try:
        return path.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise SettingsError(f"{path} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise SettingsError(f"{path} cannot be read: {error.strerror}") from error
