"""TruthfulQA as multiple choice: the best answer against the incorrect ones (MC1).

https://github.com/sylinrl/TruthfulQA: CSV with `Question`, `Best Answer`, `Incorrect Answers`
(parted by semicolons), and others.
"""

import csv
import hashlib
import io
from collections.abc import Iterator
from pathlib import Path

from adapter.evaluation.readers.records import LABELLED, OPEN, Format, Line, Record, contents


def records(path: Path) -> Iterator[Record]:
    """The questions, each with its options in an order of its own. Raises SettingsError."""
    reader = csv.DictReader(io.StringIO(contents(path)))
    for row in reader:
        yield _record(Line(path, reader.line_num, row))


def _record(line: Line) -> Record:
    question, best = line.text("Question").strip(), line.text("Best Answer").strip()
    wrong = [one.strip() for one in line.text("Incorrect Answers").split(";") if one.strip()]
    options = _shuffled(question, [best, *wrong])
    category = str(line.content.get("Category") or "")
    return Record(
        line.place,
        {"question": question, "category": category},
        options=options,
        right=(options.index(best),),
    )


def _shuffled(question: str, options: list[str]) -> tuple[str, ...]:
    """An order that tells nothing of what is right, and stays when options come or go."""
    unique = dict.fromkeys(options)
    return tuple(
        sorted(unique, key=lambda one: hashlib.sha256(f"{question}\n{one}".encode()).digest())
    )


FORMAT = Format(
    records,
    fields=("question", "category"),
    templates={"answers": OPEN, "labels": LABELLED},
)
