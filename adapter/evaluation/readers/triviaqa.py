"""TriviaQA and NQ-open: open questions, and all the answers that are accepted.

https://nlp.cs.washington.edu/triviaqa as JSONL, `question` and `answer` with `aliases` beside or
inside it; https://github.com/google-research-datasets/natural-questions (nq_open), `question` and
`answer` as a list.
"""

from collections.abc import Iterator
from pathlib import Path

from adapter.evaluation.readers.records import OPEN, Format, Line, Record, lines


def records(path: Path) -> Iterator[Record]:
    """TriviaQA's questions; the answer comes before its aliases. Raises SettingsError."""
    for line in lines(path):
        inner = line.content.get("answer")
        nested = Line(line.path, line.number, inner) if isinstance(inner, dict) else None
        answer = nested.text("value") if nested else line.text("answer")
        yield _record(line, (answer, *(nested or line).texts("aliases")))


def nq_records(path: Path) -> Iterator[Record]:
    """NQ-open's questions. Raises SettingsError."""
    for line in lines(path):
        yield _record(line, line.texts("answer"))


def _record(line: Line, answers: tuple[str, ...]) -> Record:
    accepted = tuple(dict.fromkeys(one.strip() for one in answers if one.strip()))
    if not accepted:
        raise line.wrong("no answer is accepted")
    return Record(
        line.place,
        {"question": line.text("question").strip()},
        accepted=accepted,
        name=str(line.content.get("question_id", "")),
    )


FORMAT = Format(records, fields=("question",), templates={"generation": OPEN})
NQ_OPEN = Format(nq_records, fields=("question",), templates={"generation": OPEN})
