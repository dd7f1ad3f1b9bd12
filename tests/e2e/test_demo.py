"""`adapter demo` as a user runs it, with fewer questions."""

import json
import os
import signal
import subprocess
import sys

import openai
import pytest

from adapter.demo.almanac import questions
from adapter.demo.stage import STEERED, WEIGHTS

pytestmark = pytest.mark.engine

COMMAND = [sys.executable, "-m", "adapter.cli", "demo"]


def test_the_demo_measures_what_it_promises():
    done = subprocess.run(
        [*COMMAND, "--json", "--questions", "48"],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    assert set(result["new"]) == {"hosted", "adapted", "adapted_whole", "tuned", "expert"}
    assert set(result["old"]) == {"hosted", "adapted", "tuned", "expert"}
    # the targets of the whole run, with room for 24 questions of each kind
    assert result["new"]["hosted"] <= 0.15
    assert result["new"]["tuned"] >= 0.85
    assert result["gap_closed"] >= 0.7
    assert result["gap_closed_whole_vocabulary"] >= result["gap_closed"]
    assert result["old"]["adapted"] >= result["old"]["hosted"] - 0.05
    low, high = result["gap_closed_interval"]
    assert low <= result["gap_closed"] <= high
    assert result["calls_per_token"] <= 1.0
    assert result["questions"] == 48


def test_another_expert_takes_the_shipped_ones_place():
    """The anti-expert as its own expert steers nothing."""
    words = ["--json", "--questions", "8", "--expert", str(WEIGHTS / "antiexpert")]
    done = subprocess.run(
        [*COMMAND, *words], capture_output=True, text=True, timeout=300, check=False
    )
    assert done.returncode == 0, done.stderr
    result = json.loads(done.stdout)
    for age in ("new", "old"):
        assert result[age]["adapted"] == result[age]["hosted"]
    assert result["new"]["expert"] <= 0.25


def test_there_are_enough_questions():
    new, old = questions()
    assert len(new) + len(old) >= 300


def test_keep_leaves_the_servers_running_and_says_how_to_call_them():
    environment = {**os.environ, "COLUMNS": "200", "PYTHONUNBUFFERED": "1"}
    with subprocess.Popen(
        [*COMMAND, "--keep", "--questions", "2"],
        stdout=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            said = ""
            for line in process.stdout:
                said += line
                if "Ctrl-C" in line:
                    break
            url = said.split("The service listens at ")[1].split(",")[0]
            assert f"curl {url}/completions" in said
            assert f"{url.removesuffix('v1')}#model={STEERED}&prompt=Question" in said
            client = openai.OpenAI(base_url=url, api_key="none")
            assert STEERED in [m.id for m in client.models.list()]
            question = questions()[0][0]
            answer = client.completions.create(
                model=STEERED, prompt=question.prompt, max_tokens=16, temperature=0
            )
            assert answer.choices[0].text.strip()
        finally:
            process.send_signal(signal.SIGINT)
    assert process.returncode == 0
