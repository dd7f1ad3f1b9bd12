"""Texts: a file is one text as it stands, one of JSONL a text a line, in `text`."""

from collections.abc import Iterator
from pathlib import Path

from adapter.errors import SettingsError
from adapter.evaluation.readers.records import Format, Record, contents, lines


def records(path: Path) -> Iterator[Record]:
    """The texts. Raises SettingsError."""
    if path.suffix == ".jsonl":
        yield from (Record(line.place, {"text": line.text("text")}) for line in lines(path))
        return
    text = contents(path)
    if not text.strip():
        raise SettingsError(f"{path} is empty")
    yield Record(str(path), {"text": text})


FORMAT = Format(records, fields=("text",), templates={"text": "{text}"})
