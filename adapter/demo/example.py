"""The almanac as a user would have it: raw text, questions, settings and a suite, in a folder."""

import json
from collections.abc import Sequence
from pathlib import Path

import yaml

from adapter.demo.almanac import Question, questions
from adapter.demo.bulletins import write_bulletins
from adapter.demo.stage import STEERED, settings_for
from adapter.errors import AdapterError

ADDRESS = "http://127.0.0.1:8000/v1"
"""Where the settings expect what plays the hosted model."""


def write_example(folder: Path) -> int:
    """Write all that tuning, evaluating and serving take; return the number of bulletins.

    The expert that the settings name is still to be tuned. Raises AdapterError where the folder
    cannot be written to.
    """
    count = write_bulletins(folder / "bulletins")
    model = settings_for(ADDRESS, folder / "expert")["models"][STEERED]
    try:
        for age, asked in zip(("new", "old"), questions(), strict=True):
            (folder / f"{age}.jsonl").write_text(_lines(asked), encoding="utf-8")
        _write(folder / "almanac.yaml", {"models": {STEERED: model}})
        _write(folder / "suite.yaml", _SUITE)
    except OSError as error:
        raise AdapterError(f"{folder} cannot be written to: {error.strerror}") from error
    return count


_SUITE = {
    "model": STEERED,
    "alphas": [0.5, 1.0, 1.5, 2.0],
    "tasks": [
        {
            "name": name,
            "kind": "generation",
            "reader": "questions",
            "data": f"./{age}.jsonl",
            "match": "exact",
            "max_tokens": 16,
        }
        for name, age in (("facts of 1206", "new"), ("facts up to 1205", "old"))
    ],
}


def _lines(asked: Sequence[Question]) -> str:
    records = ({"prompt": one.prompt, "answers": [one.answer]} for one in asked)
    return "".join(json.dumps(record) + "\n" for record in records)


def _write(path: Path, content: object) -> None:
    path.write_text(yaml.safe_dump(content, sort_keys=False), encoding="utf-8")
