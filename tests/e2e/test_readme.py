"""The README's settings, commands and snippets, run as they stand but for ports."""

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.model_server import model_server
from tests.support.tiny import tiny

README = Path(__file__).parents[2] / "README.md"
BLOCKS = re.findall(r"```(\w+)\n(.*?)```", README.read_text(), re.DOTALL)


def blocks(language):
    return [text for kind, text in BLOCKS if kind == language]


def commands():
    return [line.split("#")[0].strip() for text in blocks("bash") for line in text.splitlines()]


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """What the README's settings name: a tokenizer and a pair, beside the settings file."""
    folder = tmp_path_factory.mktemp("readme")
    models = tiny()
    (folder / "experts").mkdir()
    (folder / "big-model-tokenizer").symlink_to(models.upstream)
    (folder / "experts" / "news").symlink_to(models.other_expert)
    (folder / "experts" / "base").symlink_to(models.other_antiexpert)
    return folder


@pytest.fixture(scope="module")
def environment(folder):
    """The README's upstream with its key, and an environment to run commands in."""
    with model_server(tiny().upstream, name="big-model", key="sk-readme") as server:
        (settings,) = blocks("yaml")
        settings = settings.replace("http://127.0.0.1:8000/v1", server.base_url)
        (folder / "news.yaml").write_text(settings)
        path = f"{Path(sys.executable).parent}{os.pathsep}{os.environ['PATH']}"
        extra = {"PATH": path, "UPSTREAM_KEY": "sk-readme", "ADAPTER_SERVICE__PORT": "0"}
        yield {**os.environ, **extra}


def run(command, folder, environment):
    done = subprocess.run(
        command,
        cwd=folder,
        env=environment,
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.fixture(scope="module")
def port(folder, environment):
    """`adapter serve news.yaml`, running."""
    assert "adapter serve news.yaml" in commands()
    with subprocess.Popen(
        ["adapter", "serve", "news.yaml"],
        cwd=folder,
        env=environment,
        stdout=subprocess.PIPE,
        text=True,
    ) as process:
        try:
            line = next(line for line in process.stdout if "http://" in line)
            yield line.rsplit(":", 1)[1].strip()
        finally:
            process.terminate()


@pytest.mark.parametrize("number", range(len(blocks("python"))))
def test_snippets_run_against_the_service(number, port, folder, environment):
    snippet = blocks("python")[number].replace("8080", port)
    run([sys.executable, "-c", snippet], folder, environment)


def test_complete_runs_in_process(folder, environment):
    (command,) = [c for c in commands() if c.startswith("adapter complete")]
    out = run(["bash", "-c", command], folder, environment)
    assert out.strip()


def test_probe_finds_that_the_upstream_can_be_steered(folder, environment):
    (command,) = [c for c in commands() if c.startswith("adapter probe")]
    assert "use: api: completions" in run(["bash", "-c", command], folder, environment)


def test_every_command_is_one_that_something_runs():
    run_elsewhere = {"make demo", "make test", "adapter serve news.yaml"}
    rest = set(commands()) - run_elsewhere - {""}
    assert all(c.startswith(("adapter complete", "adapter probe")) for c in rest)


def test_the_readme_stays_short():
    assert len(README.read_text().splitlines()) <= 150
