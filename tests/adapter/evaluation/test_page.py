"""The page of the evaluation: its suite is read, its line of questions and its command work."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import adapter.evaluation
from adapter.evaluation.readers import FORMATS, read
from adapter.evaluation.suite import load_suite

FOLDER = Path(adapter.evaluation.__file__).parent
PAGE = (FOLDER / "README.md").read_text("utf-8")


def block(kind):
    """The page's one block of a language."""
    (text,) = re.findall(rf"```{kind}\n(.*?)```", PAGE, re.DOTALL)
    return text


def test_the_suite_is_one(tmp_path):
    for name in ("questions.jsonl", "gsm8k.jsonl", "encyclopedia.txt"):
        (tmp_path / name).touch()
    (tmp_path / "suite.yaml").write_text(block("yaml"))
    suite = load_suite(tmp_path / "suite.yaml")
    assert [task.kind for task in suite.tasks] == ["answers", "labels", "generation", "text"]
    assert all(task.kind in FORMATS[task.reader].templates for task in suite.tasks)


def test_the_line_of_questions(tmp_path):
    path = tmp_path / "questions.jsonl"
    path.write_text(block("json"))
    (item,) = read("questions", [path], None, "answers")
    assert item.answers[item.right[0]] == " Lena Voss"


def test_every_reader_has_its_row():
    rows = re.findall(r"^\| `([\w-]+)` \| .* \| ([\w, ]+) \| ([\w, ]+) \|$", PAGE, re.MULTILINE)
    assert [name for name, _, _ in rows] == list(FORMATS)
    for name, kinds, fields in rows:
        assert kinds.split(", ") == list(FORMATS[name].templates)
        assert fields.split(", ") == list(FORMATS[name].known)


def test_the_command_writes_corpus_and_questions(tmp_path):
    asked = {"question_sentence": "Who?", "choices": ["Ann", "Bo"], "answer": ["0"]}
    lines = [asked | {"evidence": "<b>Ann</b> did."}, asked | {"evidence": ""}]
    (tmp_path / "realtimeqa.jsonl").write_text("\n".join(map(json.dumps, lines)))
    command = [sys.executable, *shlex.split(block("bash"))[1:]]
    done = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "corpus.jsonl").read_text()) == {"text": "Ann did."}
    assert json.loads((tmp_path / "questions.jsonl").read_text()) == lines[0]
    again = [*command[:3], "none.jsonl", *command[4:]]
    failed = subprocess.run(again, cwd=tmp_path, capture_output=True, text=True, timeout=120)
    assert failed.returncode == 1
    assert failed.stderr.startswith("none.jsonl cannot be read")
