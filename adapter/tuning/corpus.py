"""What is learnt from: texts, or chats whose answers are to be learnt."""

import hashlib
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapter.errors import TuningError
from adapter.request import Message

TEXTS = (".txt", ".md", ".markdown")
LINES = ".jsonl"
ROLES = ("system", "user", "assistant")
_FORMS = ({"text"}, {"messages"}, {"prompt", "completion"})
_FORMS_IN_WORDS = "text, messages, or prompt and completion"


@dataclass(frozen=True, slots=True)
class Document:
    """One text, or one chat that ends with an answer."""

    content: str | tuple[Message, ...] = field(repr=False)

    @property
    def is_chat(self) -> bool:
        """Whether only its answers are learnt."""
        return not isinstance(self.content, str)

    @property
    def digest(self) -> bytes:
        """The sha256 of what it says, wherever it was read."""
        turns = self.content
        plain = turns if isinstance(turns, str) else [[m.role, m.content] for m in turns]
        return hashlib.sha256(json.dumps(plain).encode()).digest()


@dataclass(frozen=True, slots=True)
class Corpus:
    """Documents of one kind, in the order they were read."""

    documents: tuple[Document, ...]

    @property
    def is_chat(self) -> bool:
        """Whether it is for instruction tuning; else for continued pre-training."""
        return self.documents[0].is_chat

    @property
    def digest(self) -> str:
        """The sha256 (hex) of all documents in their order."""
        return hashlib.sha256(b"".join(d.digest for d in self.documents)).hexdigest()


def read_corpus(path: Path, ignore: Collection[str] = ()) -> Corpus:
    """The texts below a folder, of one text file, or of a JSONL file; blank texts are left out.

    `ignore` names fields of JSONL lines that are not learnt from. Raises TuningError.
    """
    documents = [d for file in _files(path) for d in _documents(file, ignore)]
    if not documents:
        raise TuningError(f"{path} holds no text")
    chats = sum(d.is_chat for d in documents)
    if 0 < chats < len(documents):
        raise TuningError(
            f"{path} mixes {chats} chats with {len(documents) - chats} plain texts: tune on one "
            "kind, and then on the other from what came out"
        )
    return Corpus(tuple(documents))


def held_out(corpus: Corpus, share: float) -> tuple[Sequence[Document], Sequence[Document]]:
    """The documents to learn from, and about that share of them kept aside.

    A document's own digest decides, so equal texts stay together and what else there is in the
    corpus hardly matters. At least one text of two is kept aside, unless the share is 0.
    """
    digests = sorted({d.digest for d in corpus.documents})
    if share <= 0 or len(digests) < 2:
        return corpus.documents, ()
    limit = int(share * 2**64)
    chosen = {d for d in digests if int.from_bytes(d[:8]) < limit} or {digests[0]}
    chosen.discard(digests[-1])  # something must be left to learn from
    kept = tuple(d for d in corpus.documents if d.digest in chosen)
    return tuple(d for d in corpus.documents if d.digest not in chosen), kept


def _files(path: Path) -> list[Path]:
    known = (*TEXTS, LINES)
    if path.is_file():
        if path.suffix not in known:
            raise TuningError(f"{path} is none of {', '.join(known)}")
        return [path]
    if not path.is_dir():
        raise TuningError(f"there is no file or folder {path}")
    found = (p for p in path.rglob("*") if p.suffix in known and p.is_file())
    shown = [p for p in found if not any(x.startswith(".") for x in p.relative_to(path).parts)]
    if not shown:
        raise TuningError(f"the folder {path} holds no {', '.join(known)} file")
    return sorted(shown, key=lambda p: p.relative_to(path).as_posix())


def _documents(file: Path, ignore: Collection[str]) -> Iterator[Document]:
    """What a file holds; blank space at its ends does not count."""
    try:
        text = file.read_text(encoding="utf-8-sig")
    except UnicodeDecodeError as error:
        raise TuningError(f"{file} is not UTF-8 text (byte {error.start})") from error
    except OSError as error:
        raise TuningError(f"{file} cannot be read: {error.strerror}") from error
    if file.suffix == LINES:
        yield from _lines(file, text, ignore)
    elif text.strip():
        yield Document(text.strip())


def _lines(file: Path, text: str, ignore: Collection[str]) -> Iterator[Document]:
    for number, line in enumerate(text.split("\n"), 1):  # JSON may hold other line separators
        if not line.strip():
            continue
        try:
            document = _document(json.loads(line), ignore)
        except ValueError as error:
            raise TuningError(f"{file}, line {number}: {error}") from error
        if document.content:
            yield document


def _document(line: Any, ignore: Collection[str]) -> Document:
    """One line of JSONL. Raises ValueError."""
    if not isinstance(line, dict):
        raise ValueError(f"a {type(line).__name__} instead of an object with {_FORMS_IN_WORDS}")
    fields = {name for name in line if name not in ignore}
    form = next((form for form in _FORMS if form <= fields), None)
    if form is None:
        raise ValueError(f"none of {_FORMS_IN_WORDS} among its fields ({_listed(line)})")
    if fields != form:
        raise ValueError(
            f"unknown beside {' and '.join(sorted(form, reverse=True))}: "
            f"{_listed(fields - form)}; take fields out, or leave them aside with --ignore"
        )
    if "text" in form:
        return Document(_text(line["text"], "text").strip() and line["text"])
    if "messages" in form:
        return Document(_chat(line["messages"]))
    answer = _text(line["completion"], "completion")
    if not answer.strip():
        raise ValueError("the completion is empty")
    question = Message("user", _text(line["prompt"], "prompt"))
    return Document((question, Message("assistant", answer)))


def _chat(turns: Any) -> tuple[Message, ...]:
    if not isinstance(turns, list) or not turns:
        raise ValueError("messages is not a list of turns")
    messages = tuple(_message(turn, number) for number, turn in enumerate(turns, 1))
    if messages[-1].role != "assistant" or not messages[-1].content.strip():
        raise ValueError("the last of the messages is not an answer of the assistant")
    return messages


def _message(turn: Any, number: int) -> Message:
    if not isinstance(turn, dict) or set(turn) != {"role", "content"}:
        raise ValueError(f"message {number} does not have just the fields role and content")
    if turn["role"] not in ROLES:
        raise ValueError(f"the role of message {number} is none of {', '.join(ROLES)}")
    return Message(turn["role"], _text(turn["content"], f"the content of message {number}"))


def _text(value: Any, name: str) -> str:
    if not isinstance(value, str):
        raise ValueError(f"{name} is not a string")
    return value


def _listed(names: Collection[str]) -> str:
    return ", ".join(sorted(map(str, names))) or "it has none"
