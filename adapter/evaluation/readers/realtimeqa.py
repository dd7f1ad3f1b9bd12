"""RealTimeQA: dated questions on the news, with options and the evidence an article gives.

https://github.com/realtimeqa/realtimeqa_public: JSONL with `question_sentence`, `choices`, `answer`
(a list of places, as strings), and often `question_id`, `question_date`, `evidence`.
"""

import logging
from collections.abc import Iterator
from html.parser import HTMLParser
from pathlib import Path

from adapter.evaluation.readers.records import LABELLED, OPEN, Format, Line, Record, lines

_LOG = logging.getLogger(__name__)


class _Text(HTMLParser):
    def __init__(self) -> None:
        super().__init__()
        self.pieces: list[str] = []

    def handle_data(self, data: str) -> None:
        self.pieces.append(data)


def plain(html: str) -> str:
    """Text without tags and doubled white space; a link leaves its words."""
    parser = _Text()
    parser.feed(html)
    parser.close()
    return " ".join("".join(parser.pieces).split())


def records(path: Path) -> Iterator[Record]:
    """The questions that have an answer; empty options do not count. Raises SettingsError."""
    unanswered = 0
    for line in lines(path):
        record = _record(line)
        if record.right:
            yield record
        else:
            unanswered += 1
    if unanswered:
        _LOG.warning("%s: %d questions without an answer are left out", path, unanswered)


def _record(line: Line) -> Record:
    choices = [plain(one) for one in line.texts("choices")]
    answers = line.places("answer", len(choices))
    if not all(choices[place] for place in answers):
        raise line.wrong("the right one of the 'choices' is empty")
    kept = [place for place, choice in enumerate(choices) if choice]
    fields = {
        "question": plain(line.text("question_sentence")),
        "date": str(line.content.get("question_date", "")),
        "source": str(line.content.get("question_source", "")),
    }
    return Record(
        line.place,
        fields,
        options=tuple(choices[place] for place in kept),
        right=tuple(kept.index(place) for place in answers),
        accepted=tuple(choices[place] for place in answers),
        name=str(line.content.get("question_id", "")),
    )


FORMAT = Format(
    records,
    fields=("question", "date", "source"),
    templates={"answers": OPEN, "labels": LABELLED, "generation": OPEN},
)
