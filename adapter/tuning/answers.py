"""Instruction tuning: chats as the pair will read them, of which only the answers are learnt."""

from collections.abc import Iterable, Iterator, Sequence
from itertools import takewhile

from adapter.errors import TuningError
from adapter.prefix import Segment, Special
from adapter.request import Message
from adapter.templates import encode, render
from adapter.tuning.rows import Rows
from tokenizer_maps.vocabulary import Vocabulary

Row = tuple[tuple[int, ...], tuple[bool, ...]]
"""Ids, and which of them are learnt."""


def answer_rows(
    chats: Iterable[Sequence[Message]], vocabulary: Vocabulary, template: str, length: int
) -> tuple[Rows, int]:
    """One row for each answer, behind all that was said before it, as when it is served.

    A row longer than `length` tokens is cut at its end; one whose answer is all cut off is left
    out. The number is how many these are. Raises TuningError where the template does not fit.
    """
    rows = [row for chat in chats for row in _rows(chat, vocabulary, template)]
    cut = ((ids[:length], learnt[:length]) for ids, learnt in rows)
    long = sum(len(ids) > length for ids, _ in rows)
    return Rows.of(row for row in cut if any(row[1])), long


def _rows(chat: Sequence[Message], vocabulary: Vocabulary, template: str) -> Iterator[Row]:
    for at, message in enumerate(chat):
        if message.role == "assistant" and message.content:
            yield _row(chat[: at + 1], vocabulary, template)


def _row(chat: Sequence[Message], vocabulary: Vocabulary, template: str) -> Row:
    """A chat up to an answer. What the template puts behind the end of the answer is left off."""
    asked = render(template, chat[:-1], vocabulary)
    answered = _ended(render(template, chat, vocabulary, answer_next=False), chat[-1].content)
    if not _spelt(answered).startswith(_spelt(asked)):
        raise TuningError(
            "the chat template does not write an answer behind its own opening of the answer: "
            "it cannot be used to tune; give another with --chat-template"
        )
    before, ids = encode(asked, vocabulary), encode(answered, vocabulary)
    # Where the answer's first letters join the prompt's last token, that token is learnt too.
    same = takewhile(lambda pair: pair[0] == pair[1], zip(before, ids, strict=False))
    opened = sum(1 for _ in same)
    return ids, tuple(i >= opened for i in range(len(ids)))


def _ended(segments: Sequence[Segment], answer: str) -> Sequence[Segment]:
    """Without the blank text behind a special token that ends the answer; nobody says that."""
    last = segments[-1]
    blank = isinstance(last, bytes) and not last.strip()
    if blank and len(segments) > 1 and isinstance(segments[-2], Special) and answer.strip():
        return segments[:-1]
    return segments


def _spelt(segments: Sequence[Segment]) -> bytes:
    """One string of segments, in which a special token is not to be taken for text."""
    return b"".join(
        s if isinstance(s, bytes) else b"\xff%s\xff" % s.name.encode() for s in segments
    )
