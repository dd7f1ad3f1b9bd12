"""adapter tune: what it prints, how it fails."""

import json
import subprocess
import sys

import pytest
import torch
from typer.testing import CliRunner, Result

from adapter.cli import app
from adapter.errors import TuningError
from tests.adapter.tuning.makings import TEMPLATE, base, write_corpus

SMALL = (
    "--batch",
    "4",
    "--micro-batch",
    "4",
    "--sequence",
    "32",
    "--rate",
    "3e-3",
    "--checks",
    "2",
)

CODE = """
import sys
import adapter.cli
import adapter.tuning.corpus, adapter.tuning.card, adapter.tuning.recipe, adapter.tuning.checkpoints
assert not {"torch", "transformers", "peft", "accelerate"} & set(sys.modules)
"""


def run(*words: object) -> Result:
    return CliRunner().invoke(app, ["tune", *map(str, words)], env={"COLUMNS": "200"})


@pytest.fixture(scope="module")
def corpus(tmp_path_factory):
    return write_corpus(tmp_path_factory.mktemp("corpus") / "texts")


def test_an_expert_and_its_card(corpus, tmp_path):
    words = (base(), corpus, "--out", tmp_path / "expert", *SMALL)
    result = run(*words)
    assert result.exit_code == 0, result.output
    lines = result.stdout.splitlines()
    assert lines[0].startswith(f"{tmp_path / 'expert'}: ")
    assert " before, " in lines[1]
    steps = [x.split(":")[0] for x in result.stderr.splitlines() if x.startswith("step")]
    assert steps == [f"step {step} of 14" for step in (0, 7, 14)]
    assert lines[2].startswith("only ")
    again = run(*words, "--json")
    assert json.loads(again.stdout) == json.loads((tmp_path / "expert" / "card.json").read_text())


def test_lora_and_chats(tmp_path):
    file, template = tmp_path / "chats.jsonl", tmp_path / "template.jinja"
    lines = [{"prompt": f"Where is {n}?", "completion": "Here.", "id": n} for n in range(12)]
    file.write_text("\n".join(map(json.dumps, lines)))
    template.write_text(TEMPLATE)
    words = (base(), file, "--out", tmp_path / "expert", *SMALL, "--sequence", 99, "--lora")
    chats = ("--chat-template", template, "--ignore", "id", "--optimizer", "mofo", "--json")
    result = run(*words, *chats)
    assert result.exit_code == 0, result.output
    card = json.loads(result.stdout)
    assert card["data"]["kind"] == "chats"
    assert card["settings"]["lora"] == {"rank": 64, "alpha": 16, "dropout": 0.1}
    assert card["settings"]["optimizer"]["name"] == "mofo"
    assert (tmp_path / "expert" / "adapter_model.safetensors").exists()


def test_the_papers_settings_are_the_defaults(corpus, tmp_path):
    """Liu et al., appendix: 2 epochs, batch 128, warm-up .04; rates 2e-5, and 1e-4 for LoRA."""
    for lora, rate in (((), 2e-5), (("--lora",), 1e-4)):
        out = tmp_path / f"expert{len(lora)}"
        result = run(base(), corpus, "--out", out, "--json", *lora)
        assert result.exit_code == 0, result.output
        settings = json.loads(result.stdout)["settings"]
        assert (settings["epochs"], settings["batch"], settings["sequence"]) == (2, 128, None)
        chosen = settings["optimizer"]
        assert (chosen["rate"], chosen["warm_up"], chosen["weight_decay"]) == (rate, 0.04, 0)


def test_what_is_wrong_is_said_before_anything_is_loaded(corpus, tmp_path):
    result = run(base(), corpus, "--out", tmp_path / "x", "--batch", 5, "--micro-batch", 2)
    assert result.exit_code == 2
    assert "--batch 5 is not a multiple of --micro-batch 2" in result.output
    (tmp_path / "bad.jsonl").write_text('{"text": "x"}\n{"txt": "y"}')
    failed = run(base(), tmp_path / "bad.jsonl", "--out", tmp_path / "x")
    assert isinstance(failed.exception, TuningError)
    assert "bad.jsonl, line 2" in str(failed.exception)
    failed = run(base(), corpus, "--out", tmp_path / "x", "--chat-template", tmp_path / "none")
    assert "the chat template" in str(failed.exception)
    assert not (tmp_path / "x").exists()


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_a_missing_gpu_is_said(corpus, tmp_path):
    failed = run(base(), corpus, "--out", tmp_path / "x", "--device", "cuda")
    assert "torch finds no GPU here" in str(failed.exception)


def test_a_missing_package_is_named(corpus, tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "peft", None)
    failed = run(base(), corpus, "--out", tmp_path / "x")
    assert isinstance(failed.exception, TuningError)
    assert "pip install 'proxytune-adapter[tune]'" in str(failed.exception)


def test_help_and_a_corpus_need_no_model_stack():
    assert "Examples: adapter tune" in run("--help").output
    subprocess.run([sys.executable, "-c", CODE], check=True)
