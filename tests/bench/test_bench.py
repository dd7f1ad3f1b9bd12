"""The benches run, on tiny corpora and models: what they measure has no meaning here."""

import json
from argparse import Namespace
from pathlib import Path

import numpy as np
import pytest

from tests.bench import __main__ as command
from tests.bench import bridge, bridge_models, cache, corpora, forgetting, service, speed
from tests.support import vocabularies
from tests.support.tiny import tiny
from tests.tokenizer_maps import worlds
from tokenizer_maps import load_vocabulary

RULES = {"fast", "exact", "auto", "prefix", "string", "first_subtoken", "unsteered"}
TEXTS = {"python", "english", "multilingual"}


def finite(values: dict[str, float], keys: set[str]) -> bool:
    return values.keys() == keys and bool(np.isfinite([*values.values()]).all())


@pytest.fixture
def small(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """Two tokenizers and a few lines of text in place of the real ones."""
    made = {
        "gpt": load_vocabulary(worlds.write(tmp_path / "gpt", worlds.gpt2_style(), "<|end|>")),
        "digits": load_vocabulary(worlds.write(tmp_path / "digits", worlds.digit_style(), "</s>")),
    }
    monkeypatch.setattr(vocabularies, "missing", lambda name: None)
    monkeypatch.setattr(vocabularies, "real", made.__getitem__)
    monkeypatch.setattr(bridge, "PAIRS", (("gpt", "digits"),))
    monkeypatch.setattr(speed, "PAIR", ("gpt", "digits"))
    monkeypatch.setattr(speed, "STEPS", 3)
    monkeypatch.setattr(speed, "PROMPT", 20)
    texts = {"markdown": worlds.WORLD, "python": worlds.CODE, "english": worlds.PROSE}
    for name, text in texts.items():
        corpus = corpora.Corpus(worlds.PROSE + text, text * 12, "here")
        monkeypatch.setattr(corpora, name, lambda corpus=corpus: corpus)
    foreign = corpora.Corpus(worlds.PROSE + worlds.WORLD, worlds.WORLD * 12, "here")
    monkeypatch.setattr(corpora, "multilingual", lambda cache: foreign)
    bridge._world.cache_clear()
    bridge._map.cache_clear()


def test_bridge(small: None, capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["bridge", "--json", "--positions", "3"])
    result = json.loads(capsys.readouterr().out)
    assert finite(result["kl"]["gpt→digits"], RULES)
    assert result["kl_by_text"]["gpt→digits"].keys() == TEXTS | {"all"}
    assert result["positions"] == {"gpt→digits": 9}
    assert finite({key: result[key] for key in speed.GOALS}, set(speed.GOALS))
    table = bridge.report(result)
    assert all(name in table for name in RULES | TEXTS | set(speed.GOALS))


def test_bridge_models(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for name, value in {"K": 200, "WINDOW": 40, "PROMPT": 20, "EACH": 2}.items():
        monkeypatch.setattr(bridge_models, name, value)
    text = tmp_path / "text"
    text.write_text(worlds.PROSE * 3, "utf-8")
    models = tiny()
    result = bridge_models.run(
        Namespace(
            hosted=models.upstream,
            pair=str(models.other_antiexpert),
            expert=str(models.other_expert),
            text=text,
            positions=4,
        )
    )
    assert result["positions"] == 4
    assert all(finite(result["nll"][str(alpha)], RULES) for alpha in bridge_models.ALPHAS)
    assert finite(result["tv"], RULES)
    assert "first_subtoken" in bridge_models.report(result)


def test_cache(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["cache", "--json", "--prompts", "1", "--tokens", "4"])
    result = json.loads(capsys.readouterr().out)
    assert (result["warm_calls"], result["reads_per_run"]) == (0, 1)
    assert result["same_text"] == result["texts"] == 6
    assert result["kinds"].keys() == {"none", *cache.KEPT, *cache.LOST}
    assert all(name in cache.report(result) for name in result["kinds"])


def test_service(capsys: pytest.CaptureFixture[str]) -> None:
    command.main(["service", "--json", "--requests", "4", "--tokens", "2"])
    result = json.loads(capsys.readouterr().out)
    assert len(result["rows"]) == 8
    assert all(0 < found["p50"] <= found["p99"] for found in result["rows"].values())
    assert 0 < result["overhead_request_ms"] < 10_000
    assert all(name in service.report(result) for name in [*result["rows"], "overhead_ms"])


def test_forgetting(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    new, old = forgetting.questions()
    monkeypatch.setattr(forgetting, "questions", lambda: (new[:4], old[:4]))
    command.main(["forgetting", "--json", "--editions", "1", "--epochs", "0.5", "--checks", "2"])
    result = json.loads(capsys.readouterr().out)
    for name in ("adamw", "mofo"):
        assert [c["step"] for c in result[name]["curve"]] == [1, 2]
    assert "adamw 1" in forgetting.report(result)
