"""Questions: the project's own format.

JSONL with `prompt`, `answers`, and where those are options `right`, a list of the places of the
right ones, from 0. Without `right` all answers are accepted.
"""

from collections.abc import Iterator
from pathlib import Path

from adapter.evaluation.readers.records import Format, Line, Record, lines


def records(path: Path) -> Iterator[Record]:
    """The questions. Raises SettingsError."""
    return map(_record, lines(path))


def _record(line: Line) -> Record:
    answers = line.texts("answers")
    if not answers or not all(one.strip() for one in answers):
        raise line.wrong("'answers' must be texts that are not empty")
    fields = {"prompt": line.text("prompt")}
    if line.content.get("right") is None:
        return Record(line.place, fields, accepted=answers)
    right = line.places("right", len(answers))
    if not right:
        raise line.wrong("'right' lists no answer")
    accepted = tuple(answers[place] for place in right)
    return Record(line.place, fields, options=answers, right=right, accepted=accepted)


FORMAT = Format(
    records,
    fields=("prompt",),
    templates={
        "answers": "{prompt}",
        "labels": "{prompt}\n{options}\nAnswer:",
        "generation": "{prompt}",
    },
)
