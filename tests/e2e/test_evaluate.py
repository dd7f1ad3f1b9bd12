"""The almanac measured by the product's own command: a hosted model that has not read the news."""

import json
import random

import pytest
import yaml
from typer.testing import CliRunner

from adapter.cli import app
from adapter.demo.almanac import questions
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import WEIGHTS, settings_for

pytestmark = pytest.mark.engine

COUNT = 20


@pytest.fixture(scope="module")
def engines():
    with (
        Engine(WEIGHTS / "hosted.gguf", EngineOptions(alias="hosted", threads=1)) as hosted,
        Engine(WEIGHTS / "hosted-tuned.gguf", EngineOptions(alias="tuned", threads=1)) as tuned,
    ):
        yield hosted.base_url, tuned.base_url


@pytest.fixture
def files(engines, tmp_path):
    hosted, tuned = (settings_for(url)["models"]["almanac"] for url in engines)
    tuned["upstream"]["model"] = "tuned"
    settings = {"models": {"almanac": hosted, "tuned": tuned}, "limits": {"forced_scoring": True}}
    (tmp_path / "adapter.yaml").write_text(yaml.safe_dump(settings))
    lines = [json.dumps({"prompt": q.prompt, "answers": [q.answer]}) for q in questions()[0]]
    (tmp_path / "written.jsonl").write_text("\n".join(lines[:COUNT]))
    (tmp_path / "chosen.jsonl").write_text("\n".join(map(json.dumps, choices())))
    tasks = [
        {"name": "written", "kind": "generation", "data": "written.jsonl"}
        | {"max_tokens": 16, "match": "exact"},
        {"name": "chosen", "kind": "answers", "data": "chosen.jsonl", "normalise": "sum"},
    ]
    suite = {"model": "almanac", "tuned": "tuned", "alphas": [1]}
    suite["tasks"] = [task | {"reader": "questions"} for task in tasks]
    (tmp_path / "suite.yaml").write_text(yaml.safe_dump(suite))
    return tmp_path


def choices():
    """New questions with three answers, the others of questions of the same kind."""
    random.seed(0)
    new = questions()[0]
    for one in new[:COUNT]:
        alike = sorted({q.answer for q in new if q.kind == one.kind} - {one.answer})
        answers = [one.answer, *random.sample(alike, 2)]
        random.shuffle(answers)
        yield {"prompt": one.prompt, "answers": answers, "right": [answers.index(one.answer)]}


def test_the_almanac_is_known_to_whoever_has_read_it(files):
    words = ["evaluate", files / "adapter.yaml", files / "suite.yaml", "--out", files, "--json"]
    result = CliRunner().invoke(app, list(map(str, words)), env={"COLUMNS": "200"})
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    share = {(row["task"], row["system"]): row["result"] for row in rows}
    assert {row["items"] for row in rows} == {COUNT}
    for system in ("adapted", "expert news", "tuned"):
        assert share["written", system] >= 0.85
        assert share["chosen", system] >= 0.9
    for system in ("hosted", "anti-expert"):
        assert share["written", system] <= 0.15
        assert share["chosen", system] <= 0.7
    page = (files / "report.md").read_text("utf-8")
    assert "gap closed" in page
    assert (files / "written-places.png").exists()
