"""adapter evaluate: what it prints and writes, how it fails, and that a kill costs nothing."""

import json
import os
import signal
import subprocess
import sys
import time

import pytest
import yaml
from typer.testing import CliRunner

from adapter.cli import app
from adapter.errors import SettingsError
from adapter.evaluation.store import FILE
from tests.adapter.evaluation.suites import (
    ANSWERS,
    QUESTIONS,
    write_questions,
    write_settings,
    write_suite,
)
from tests.support.model_server import model_server
from tests.support.tiny import tiny

_PATIENCE = 120.0

CODE = """
import sys
import adapter.cli.evaluate, adapter.evaluation.suite, adapter.evaluation.store
assert not {"torch", "transformers", "matplotlib"} & set(sys.modules)
"""


@pytest.fixture(scope="module")
def server():
    with model_server(tiny().upstream) as server:
        yield server


@pytest.fixture
def files(server, tmp_path):
    """Settings and suite, as arguments."""
    many = [(f"{i}. {p}", answers, right) for i in range(8) for p, answers, right in QUESTIONS]
    write_questions(tmp_path / "questions.jsonl", many)
    suite = write_suite(tmp_path, ANSWERS, alphas=[0.5, 1, 2], alone=["expert"])
    return write_settings(tmp_path, server.base_url), suite


def run(*words):
    return CliRunner().invoke(app, ["evaluate", *map(str, words)], env={"COLUMNS": "200"})


def test_results_report_and_plots(files, tmp_path):
    out = tmp_path / "out"
    result = run(*files, "--out", out, "--limit", 6)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert [line.rsplit(": ", 1)[0] for line in lines[:-1]] == [
        "asked: hosted",
        *(f"asked: adapted, α = {alpha}" for alpha in ("0.5", "1", "2")),
        "asked: expert news",
    ]
    assert lines[-1] == f"{out / 'report.md'} has more"
    told = [line.split(":")[0] for line in result.stderr.splitlines() if " of 12: " in line]
    assert told == [f"{done} of 12" for done in range(13)]
    page = (out / "report.md").read_text("utf-8")
    assert "6 questions" in page
    for plot in ("asked-results.png", "asked-alpha.png"):
        assert f"({plot})" in page
        assert (out / plot).read_bytes().startswith(b"\x89PNG")
    again = run(*files, "--out", out, "--limit", 6, "--json")
    told = json.loads(again.stdout)
    assert [row["items"] for row in told["results"]] == [6] * 5
    assert told["alpha"] is None


def test_the_fitted_strength_is_written_where_it_is_asked_for(files, tmp_path):
    settings, _ = files
    before = settings.read_text()
    result = run(*files, "--out", tmp_path / "out", "--fit", "alpha", "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    fitted = told["results"][-1]
    assert (fitted["system"], fitted["items"]) == ("adapted, cross-fitted", 40)
    assert len(fitted["alpha"]) == 2
    assert settings.read_text() == before
    best = max(
        (row for row in told["results"] if row["system"] == "adapted"),
        key=lambda row: (row["result"], -row["alpha"]),
    )
    assert told["alpha"] == best["alpha"]
    written = run(*files, "--out", tmp_path / "out", "--fit", "alpha", "--write")
    assert f"α = {best['alpha']:g}, written into {settings}" in written.stdout
    expected = yaml.safe_load(before)
    expected["models"]["tiny"]["alpha"] = best["alpha"]
    assert yaml.safe_load(settings.read_text()) == expected
    third = run(*files, "--out", tmp_path / "out")  # a strength changes no outcome
    assert third.exit_code == 0


@pytest.mark.parametrize(
    "lines", [3, *(pytest.param(at, marks=pytest.mark.full) for at in (1, 60))]
)
def test_killed_it_goes_on_to_the_same_report(files, tmp_path, server, lines):
    whole, out = tmp_path / "whole", tmp_path / "killed"
    before = len(server.requests)
    undisturbed = run(*files, "--out", whole, "--json")
    calls = len(server.requests) - before
    kill([*files, "--out", out], out / FILE, lines)
    kept = (out / FILE).read_bytes().count(b"\n")
    killed = len(server.requests) - before - calls
    resumed = run(*files, "--out", out, "--json")
    assert resumed.exit_code == 0, resumed.output
    asked = len(server.requests) - before - calls
    assert kept >= lines
    assert calls <= asked <= calls + 8 * 4  # those that were under way, asked again
    assert killed < calls or lines > 1
    one, other = (json.loads(r.stdout)["results"] for r in (undisturbed, resumed))
    assert sorted(map(str, one)) == sorted(map(str, other))
    assert told(whole) == told(out)


def kill(words, file, lines):
    """Start an evaluation and kill it once so many lines are kept."""
    command = [sys.executable, "-m", "adapter.cli", "evaluate", *map(str, words)]
    process = subprocess.Popen(
        command, env={**os.environ, "OMP_NUM_THREADS": "1"}, stderr=subprocess.PIPE
    )
    end = time.monotonic() + _PATIENCE
    try:
        while process.poll() is None and time.monotonic() < end:
            if file.exists() and file.read_bytes().count(b"\n") >= lines:
                break
            time.sleep(0.001)
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()[-2000:]


def told(folder):
    """A report but for the time it took."""
    page = (folder / "report.md").read_text("utf-8")
    return page[: page.index("What it took")]


def test_failures_and_wrong_usage(files, tmp_path):
    settings, suite = files
    out = tmp_path / "out"
    assert run(settings, suite).exit_code == 2
    wrong = run(settings, suite, "--out", out, "--write")
    assert (wrong.exit_code, "--write needs --fit alpha" in wrong.output) == (2, True)
    assert isinstance(run(settings, tmp_path / "none.yaml", "--out", out).exception, SettingsError)
    assert run(settings, suite, "--out", out, "--limit", 1).exit_code == 0
    text = suite.read_text().replace("kind: answers", "kind: answers\n  normalise: sum")
    suite.write_text(text)
    refused = run(settings, suite, "--out", out)
    assert "begun with another task asked: choose another --out" in str(refused.exception)
    process = subprocess.run(
        [sys.executable, "-m", "adapter.cli", "evaluate", settings, "none.yaml", "--out", out],
        capture_output=True,
        text=True,
    )
    assert (process.returncode, process.stdout) == (1, "")
    assert process.stderr == "adapter: none.yaml: cannot be read: No such file or directory\n"


def test_help_needs_no_models():
    assert subprocess.run([sys.executable, "-c", CODE]).returncode == 0
    result = run("--help")
    assert (result.exit_code, "Example: adapter evaluate" in result.stdout) == (0, True)
