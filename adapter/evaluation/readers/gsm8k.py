"""GSM8K: grade-school problems and their solutions, which end with `#### ` and the number.

https://github.com/openai/grade-school-math: JSONL with `question` and `answer`.
"""

import re
from collections.abc import Iterator
from pathlib import Path

from adapter.evaluation.matching import last_number
from adapter.evaluation.readers.records import OPEN, Format, Line, Record, lines

_CALCULATOR = re.compile(r"<<[^<>]*>>")


def records(path: Path) -> Iterator[Record]:
    """The problems. Raises SettingsError.

    What is accepted is the whole solution, so that shots show one and `match: number` finds its
    last number; the notes for a calculator, `<<2+2=4>>`, are taken out.
    """
    return map(_record, lines(path))


def _record(line: Line) -> Record:
    solution = _CALCULATOR.sub("", line.text("answer")).strip()
    marked, _, number = solution.rpartition("#### ")
    if not marked or last_number(number) is None:
        raise line.wrong("'answer' must end with '#### ' and a number")
    return Record(line.place, {"question": line.text("question").strip()}, accepted=(solution,))


FORMAT = Format(records, fields=("question",), templates={"generation": OPEN})
