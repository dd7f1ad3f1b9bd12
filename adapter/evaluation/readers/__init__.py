"""Readers: public formats as items, one file a format."""

import hashlib
import string
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

from adapter.errors import SettingsError
from adapter.evaluation.items import Item
from adapter.evaluation.readers import gsm8k, questions, realtimeqa, texts, triviaqa, truthfulqa
from adapter.evaluation.readers.records import Format, Record

FORMATS = {
    "realtimeqa": realtimeqa.FORMAT,
    "truthfulqa": truthfulqa.FORMAT,
    "gsm8k": gsm8k.FORMAT,
    "triviaqa": triviaqa.FORMAT,
    "nq-open": triviaqa.NQ_OPEN,
    "questions": questions.FORMAT,
    "text": texts.FORMAT,
}
_LABELS = string.ascii_uppercase


def read(reader: str, paths: Sequence[Path], template: str | None, kind: str) -> list[Item]:
    """The items of files, in their order; equal questions share a group.

    `template` is a str.format of the reader's fields, and of `options`, "A. …" a line, where there
    can be options; None takes the reader's own for the `kind`. Of kind `answers` prompt + answer is
    the text to be scored, parted by a space; of kind `labels` the answers are the labels. Raises
    SettingsError for what cannot be read, with file and line.
    """
    form = _format(reader, kind)
    template = template or form.templates[kind]
    _check(template, reader, form)
    records = [record for path in paths for record in form.records(path)]
    if not records:
        raise SettingsError(f"{', '.join(map(str, paths))}: there is nothing to ask")
    seen: Counter[str] = Counter()
    return [_item(record, template, kind, seen) for record in records]


def _format(reader: str, kind: str) -> Format:
    if reader not in FORMATS:
        raise SettingsError(f"there is no reader '{reader}'; known: {', '.join(FORMATS)}")
    form = FORMATS[reader]
    if kind not in form.templates:
        raise SettingsError(
            f"reader '{reader}' has nothing for kind '{kind}'; it has: {', '.join(form.templates)}"
        )
    return form


def _check(template: str, reader: str, form: Format) -> None:
    try:
        template.format(**dict.fromkeys(form.known, ""))
    except (KeyError, IndexError, ValueError, AttributeError) as error:
        known = ", ".join(f"{{{name}}}" for name in form.known)
        raise SettingsError(
            f"the template cannot be filled ({error!s}); reader '{reader}' knows {known}; a brace "
            "that is meant is doubled"
        ) from error


def _item(record: Record, template: str, kind: str, seen: Counter[str]) -> Item:
    group = hashlib.sha256(record.asked.encode()).hexdigest()[:16]
    name = record.name or group
    seen[name] += 1
    name = name if seen[name] == 1 else f"{name}-{seen[name]}"
    labelled = zip(_LABELS, record.options, strict=False)
    options = "\n".join(f"{label}. {option}" for label, option in labelled)
    prompt = template.format(**record.fields, options=options)
    right = record.right if kind in ("answers", "labels") else ()
    return Item(name, prompt, _answers(record, prompt, kind), right, group)


def _answers(record: Record, prompt: str, kind: str) -> tuple[str, ...]:
    if kind in ("text", "generation"):
        return record.accepted
    count = len(record.options)
    if count < 2:
        raise SettingsError(f"{record.place}: kind '{kind}' needs two options or more")
    if kind == "answers":
        return tuple(spaced(prompt, option) for option in record.options)
    if count > len(_LABELS):
        raise SettingsError(f"{record.place}: {count} options are more than there are letters")
    return tuple(_LABELS[:count])


def spaced(prompt: str, answer: str) -> str:
    """An answer as it goes on from its prompt: behind a space, unless one of them has it."""
    apart = prompt[-1:].isspace() or answer[:1].isspace()
    return answer if apart or not prompt else f" {answer}"
