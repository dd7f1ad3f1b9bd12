"""Templates: from messages to segments, and from segments to a vocabulary's ids.

Only a template makes special tokens. Special strings inside user text are exchanged for a number
between two characters the text does not use before the template runs, and put back behind it, so
that they can never be taken for the template's own.
"""

import re
from collections.abc import Collection, Mapping, Sequence
from functools import lru_cache
from typing import Any

from jinja2 import Template, TemplateError
from jinja2.sandbox import ImmutableSandboxedEnvironment

from adapter.errors import BadRequest, SettingsError
from adapter.prefix import Segment, Special
from adapter.request import Message
from tokenizer_maps.vocabulary import Vocabulary

PLAIN = "{% for message in messages %}{{ message.content }}\n\n{% endfor %}"
"""The rendering without roles: the messages' texts, each followed by a blank line."""

_MARKS = "\ue000\ue001\ue002\ue003\uf8fe\uf8ff"


def _refuse(message: str) -> None:
    raise TemplateError(message)


@lru_cache(maxsize=64)
def compile_template(source: str) -> Template:
    """A sandboxed Jinja template as chat templates expect it. Raises SettingsError."""
    environment = ImmutableSandboxedEnvironment(
        trim_blocks=True, lstrip_blocks=True, extensions=["jinja2.ext.loopcontrols"]
    )
    environment.globals["raise_exception"] = _refuse
    try:
        return environment.from_string(source)
    except TemplateError as error:
        raise SettingsError(f"a chat template cannot be read: {error}") from error


def render(
    source: str,
    messages: Sequence[Message],
    vocabulary: Vocabulary | None,
    *,
    answer_next: bool = True,
) -> tuple[Segment, ...]:
    """Messages through a chat template, ready for the answer to follow unless it is there already.

    Without a vocabulary it is all one text. Raises BadRequest where the template refuses these
    messages.
    """
    specials: Mapping[str, int] = {} if vocabulary is None else vocabulary.specials
    text = "".join(m.role + m.content for m in messages)
    marks = "".join(m for m in _MARKS if m not in text and m not in source)[:2]
    if len(marks) < 2:
        raise BadRequest("the messages use every private character a template could need")
    turns = [
        {"role": _broken(m.role, specials, marks), "content": _broken(m.content, specials, marks)}
        for m in messages
    ]
    names: dict[str, Any] = {
        "bos_token": _name(vocabulary.start if vocabulary else (), specials),
        "eos_token": _name(sorted(vocabulary.end) if vocabulary else (), specials),
    }
    try:
        rendered = compile_template(source).render(
            messages=turns, add_generation_prompt=answer_next, **names
        )
    except TemplateError as error:
        raise BadRequest(
            f"the chat template refuses these messages: {error}", param="messages"
        ) from error
    return _segments(rendered, specials, marks)


def _broken(text: str, specials: Collection[str], marks: str) -> str:
    """Text in which a number between the two marks stands for every special string."""
    for at, name in enumerate(_longest_first(specials)):
        text = text.replace(name, f"{marks[0]}{at}{marks[1]}")
    return text


def _mended(text: str, specials: Collection[str], marks: str) -> bytes:
    for at, name in enumerate(_longest_first(specials)):
        text = text.replace(f"{marks[0]}{at}{marks[1]}", name)
    return text.encode()


def _segments(rendered: str, specials: Collection[str], marks: str) -> tuple[Segment, ...]:
    if not specials:
        return (rendered.encode(),)
    pieces = re.split("(" + "|".join(map(re.escape, _longest_first(specials))) + ")", rendered)
    return tuple(
        Special(piece) if piece in specials else _mended(piece, specials, marks)
        for piece in pieces
        if piece
    )


def _longest_first(specials: Collection[str]) -> list[str]:
    return sorted(specials, key=lambda name: (-len(name), name))


def _name(ids: Sequence[int], specials: Mapping[str, int]) -> str:
    return next((name for name, i in specials.items() if ids and i == ids[0]), "")


def plain(text: str) -> tuple[Segment, ...]:
    """A prompt as it stands: one segment of text."""
    return (text.encode(),) if text else ()


def encode(segments: Sequence[Segment], vocabulary: Vocabulary) -> tuple[int, ...]:
    """Segments as ids, behind what the tokenizer itself puts in front of a text."""
    fixed, text = split(segments, vocabulary)
    return fixed + vocabulary.encode(text)


def split(segments: Sequence[Segment], vocabulary: Vocabulary) -> tuple[tuple[int, ...], bytes]:
    """Ids up to the last special token, and the text behind it.

    A special token the vocabulary lacks becomes its plain text.
    """
    ids: list[int] = []
    text = b""
    for segment in segments:
        if isinstance(segment, bytes):
            text += segment
        elif segment.name not in vocabulary.specials:
            text += segment.name.encode()
        else:
            ids += [*vocabulary.encode(text), vocabulary.specials[segment.name]]
            text = b""
    start = list(vocabulary.start)
    return tuple(ids if ids[: len(start)] == start else start + ids), text


def segments_of(ids: Sequence[int], vocabulary: Vocabulary) -> tuple[Segment, ...]:
    """The segments a sequence of ids spells."""
    names = {i: name for name, i in vocabulary.specials.items()}
    segments: list[Segment] = []
    for i in ids:
        if i in names:
            segments.append(Special(names[i]))
        elif segments and isinstance(segments[-1], bytes):
            segments[-1] += vocabulary.tokens[i]
        else:
            segments.append(vocabulary.tokens[i])
    return tuple(segments)
