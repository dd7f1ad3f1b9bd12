"""Suite files: what they may say, and what is said of mistakes."""

import pytest
import yaml

from adapter.errors import SettingsError
from adapter.evaluation.suite import load_suite

TASK = {"name": "recent", "kind": "answers", "reader": "realtimeqa", "data": "./data.jsonl"}


@pytest.fixture
def load(tmp_path):
    (tmp_path / "data.jsonl").write_text("{}\n")

    def loaded(**changes):
        path = tmp_path / "suite.yaml"
        path.write_text(yaml.safe_dump({"model": "news", "tasks": [TASK]} | changes))
        return load_suite(path)

    return loaded


def test_what_is_left_out_has_defaults(load, tmp_path):
    suite = load(alphas=[2, 0.5, 2])
    (task,) = suite.tasks
    assert suite.alphas == (0.5, 2.0)
    assert suite.alone == ("expert", "antiexpert")
    assert task.data == (str(tmp_path / "data.jsonl"),)
    assert (task.normalise, task.limit, task.lower_is_better) == ("mean", None, False)
    assert suite.fitted_on is task


def test_the_task_that_decides_the_strength(load):
    tasks = [TASK, TASK | {"name": "old", "kind": "labels"}]
    assert load(tasks=tasks, validation="old").fitted_on.name == "old"
    with pytest.raises(SettingsError, match="validation: there is no task 'new'"):
        load(tasks=tasks, validation="new")


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"alfas": [1]}, r"alfas: unknown key; did you mean alphas\?"),
        ({"tasks": [TASK | {"normalize": "sum"}]}, r"tasks\.0\.normalize: .* mean normalise\?"),
        ({"tasks": [TASK | {"data": "none.jsonl"}]}, r"tasks\.0\.data\.0: there is no file /"),
        ({"tasks": [TASK | {"kind": "essay"}]}, r"tasks\.0\.kind: Input should be 'answers'"),
        ({"tasks": [TASK | {"shots": 2}]}, r"shots is for kind: generation, and this is answers"),
        ({"tasks": [TASK, TASK]}, "two tasks have the same name"),
        ({"tasks": []}, "tasks: .* at least 1"),
        ({"alphas": [0, 1]}, "alphas: 0 is the hosted model alone, which is always asked"),
        ({"alphas": [float("nan")]}, r"alphas\.0: "),
    ],
)
def test_mistakes_are_named(load, changes, message):
    with pytest.raises(SettingsError, match=message):
        load(**changes)


@pytest.mark.parametrize(
    ("content", "message"),
    [("- 1\n", "must hold keys and values"), ("a: [\n", r"suite\.yaml:2:1: is not YAML")],
)
def test_files_that_are_no_suite(tmp_path, content, message):
    path = tmp_path / "suite.yaml"
    path.write_text(content)
    with pytest.raises(SettingsError, match=message):
        load_suite(path)
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read"):
        load_suite(tmp_path / "none.yaml")
