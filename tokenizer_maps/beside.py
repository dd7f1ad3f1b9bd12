"""The files that lie beside a tokenizer: its configuration, its ends, its chat template."""

import json
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from tokenizer_maps.errors import VocabularyError

Json = dict[str, Any]


def read_json(file: Path) -> Json:
    """A file's JSON object; empty where there is no file. Raises VocabularyError."""
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise VocabularyError(f"{file} holds no JSON object")
    return found


def named(token: Any, ids: Mapping[str, int]) -> list[int]:
    """The id of a token given as a string, as an object or not at all."""
    content = token["content"] if isinstance(token, dict) else token
    return [ids[content]] if content in ids else []


def end_ids(folder: Path, own: Iterable[int]) -> frozenset[int]:
    """The tokenizer's ``own`` ends, and the eos_token_id of the model's files in ``folder``."""
    end: set[Any] = set(own)
    for name in ("generation_config.json", "config.json"):
        found = read_json(folder / name).get("eos_token_id")
        end.update(found if isinstance(found, list) else [found])
    return frozenset(end - {None})


def chat_template(folder: Path, config: Json) -> str | None:
    """chat_template.jinja of ``folder``, else what tokenizer_config.json holds."""
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found
