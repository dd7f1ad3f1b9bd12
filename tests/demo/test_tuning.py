"""The almanac's expert made again from raw text, with the commands of the documentation."""

import json
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest
from typer.testing import CliRunner

import adapter.tuning
from adapter.cli import app
from adapter.demo.example import ADDRESS
from adapter.demo.stage import WEIGHTS

PAGE = Path(adapter.tuning.__file__).parent / "README.md"
BLOCKS = re.findall(r"```bash\n(.*?)```", PAGE.read_text(), re.DOTALL)
MAKE, HOST, USE = (
    [shlex.split(line) for line in block.replace("\\\n", " ").splitlines()] for block in BLOCKS
)


def test_the_commands_of_the_page_are_those_of_the_almanac():
    assert [words[:2] for words in MAKE] == [["adapter", "demo"], ["adapter", "tune"]]
    assert MAKE[1][2] == str(WEIGHTS.relative_to(PAGE.parents[2]) / "antiexpert")
    assert [words[1:3] for words in HOST] == [["-m", "adapter.demo.engine"]]
    assert [words[:2] for words in USE] == [["adapter", "evaluate"], ["adapter", "serve"]]
    assert f"http://127.0.0.1:{HOST[0][HOST[0].index('--port') + 1]}/v1" == ADDRESS


@pytest.mark.full
def test_the_documented_commands_steer_the_hosted_model(tmp_path, monkeypatch):
    """Measured: alone 98.2 % of the new facts, steering 97.6 %, and all the old ones."""
    monkeypatch.chdir(tmp_path)
    (tmp_path / "adapter").symlink_to(PAGE.parents[1])
    for words in MAKE:
        result = CliRunner().invoke(app, words[1:])
        assert result.exit_code == 0, result.output
    hosted = [sys.executable, *HOST[0][1:]]
    with subprocess.Popen(hosted, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as engine:
        engine.stdout.readline()  # its address: it is ready
        result = CliRunner().invoke(app, [*USE[0][1:], "--json"], env={"COLUMNS": "200"})
        engine.kill()
    assert result.exit_code == 0, result.output
    rows = json.loads(result.stdout)["results"]
    share = {(row["task"], row["system"], row["alpha"]): row["result"] for row in rows}
    new, old = "facts of 1206", "facts up to 1205"
    assert share[new, "hosted", None] <= 0.05
    assert share[new, "adapted", 1.0] >= 0.9
    assert share[new, "expert news", None] >= 0.95
    assert share[old, "adapted", 1.0] >= 0.97
    assert share[old, "expert news", None] >= 0.97
