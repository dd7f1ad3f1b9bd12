"""Whole tunings of a tiny model: what comes out is an expert, killed on the way or not."""

import dataclasses
import json
from pathlib import Path

import pytest
import torch

from adapter.errors import PairError, TuningError
from adapter.pair.loading import load_model
from adapter.pair.pair import Pair
from adapter.request import Message
from adapter.tuning import tune as tuning
from adapter.tuning.card import Card
from adapter.tuning.corpus import Corpus, Document
from adapter.tuning.recipe import Lora, Optimizer, Recipe
from adapter.tuning.tune import Base, tune
from adapter.tuning.watching import Moment
from tests.adapter.tuning.makings import (
    TEMPLATE,
    base,
    command,
    corpus,
    killed,
    same,
    weights,
    write_corpus,
)

FAST = Optimizer(rate=3e-3)
RECIPE = Recipe(
    optimizer=FAST, epochs=2, batch=4, micro_batch=2, sequence=32, held_out=0.1, checks=3
)
LORA = dataclasses.replace(RECIPE, lora=Lora(rank=4, dropout=0.2))


def run(out, recipe=RECIPE, learnt=None, template=None):
    moments: list[Moment] = []
    source = Base(base(), device="cpu", template=template)
    card = tune(source, learnt or corpus(), recipe, out, moments.append)
    return card, moments


@pytest.fixture(scope="module")
def plain(tmp_path_factory):
    return run(tmp_path_factory.mktemp("plain") / "expert")


def aside(card: Card) -> list[float]:
    return [loss["held_out"] for loss in card.facts["losses"] if "held_out" in loss]


def test_what_comes_out_is_an_expert_that_has_learnt(plain):
    card, moments = plain
    losses = aside(card)
    assert len(losses) == 4  # before it, and three checks
    assert losses[-1] < 0.7 * losses[0]
    model = load_model(str(card.folder), "cpu", "auto")
    assert model.network.config.dtype == torch.float32
    untuned = load_model(base(), "cpu", "auto")
    moved = [
        not torch.equal(p, q)
        for p, q in zip(model.network.parameters(), untuned.network.parameters(), strict=True)
    ]
    assert all(moved)
    Pair.load({"news": str(card.folder)}, base(), "cpu").close()
    assert sorted(p.name for p in card.folder.iterdir()) == [
        "card.json",
        "config.json",
        "generation_config.json",
        "model.safetensors",
        "tokenizer.json",
        "tokenizer_config.json",
    ]
    steps = card.facts["steps"]
    assert [m.step for m in moments] == sorted([*range(steps + 1), 0, 4, 8, 12])  # and checks
    assert {m.steps for m in moments} == {steps}
    assert moments[-1].loss is not None


def test_the_card_tells_what_was_done(plain):
    card, _ = plain
    facts = json.loads((card.folder / "card.json").read_text())
    assert facts == card.facts
    assert facts["state"] == "done"
    assert facts["settings"]["optimizer"]["rate"] == 3e-3
    assert facts["data"]["documents"] + facts["data"]["held_out"] == 40
    assert facts["data"]["sha256"] == corpus().digest
    assert set(facts["base"]["sha256"]) == {"model.safetensors"}
    assert facts["versions"]["torch"] == torch.__version__
    assert facts["tokens_seen"] == 2 * facts["tokens"]["corpus"]
    assert facts["kept_step"] == facts["steps"]
    assert facts["cut"] == 0
    assert facts["seconds"] > 0
    assert "tide" not in json.dumps(facts)


def test_the_same_seed_gives_the_same_weights_and_another_does_not(plain, tmp_path):
    card, _ = plain
    again, _ = run(tmp_path / "again")
    other, _ = run(tmp_path / "other", dataclasses.replace(RECIPE, seed=1))
    assert same(card.folder, again.folder)
    assert not same(card.folder, other.folder)


def test_what_is_done_is_not_done_again(plain):
    card, _ = plain
    again, moments = run(card.folder)
    assert again.facts == card.facts
    assert moments == []


def test_another_recipe_or_corpus_is_refused(plain):
    card, _ = plain
    other = dataclasses.replace(RECIPE, optimizer=Optimizer(rate=1e-3), seed=3)
    with pytest.raises(TuningError, match=r"settings\.optimizer\.rate \(0\.003 there, 0\.001 now"):
        run(card.folder, other)
    with pytest.raises(TuningError, match=r"; data\.sha256 \(\w{12}\.\.\. there"):
        run(card.folder, learnt=corpus(41))


def test_a_folder_with_something_else_in_it_is_refused(tmp_path):
    (tmp_path / "mine.txt").write_text("x")
    with pytest.raises(TuningError, match="is not empty and holds no tuning"):
        run(tmp_path)
    (tmp_path / "card.json").write_text('{"pair": 1}')
    with pytest.raises(TuningError, match="is not the card of a tuning"):
        run(tmp_path)


async def test_lora_gives_an_adapter(tmp_path):
    card, _ = run(tmp_path / "expert", LORA)
    assert aside(card)[-1] < aside(card)[0]
    assert {p.name for p in card.folder.iterdir()} >= {"adapter_model.safetensors", "card.json"}
    assert not (card.folder / "model.safetensors").exists()
    assert card.facts["parameters"] < 12000
    Pair.load({"news": str(card.folder)}, base(), "cpu").close()


@pytest.mark.parametrize("bfloat16", [False, True])
def test_checkpointing_of_gradients_changes_nothing_and_half_precision_little(
    plain, tmp_path, bfloat16
):
    changed = dataclasses.replace(RECIPE, gradient_checkpointing=True, bfloat16=bfloat16)
    card, _ = run(tmp_path / "expert", changed)
    apart = [
        (one - other).abs().max().item()
        for one, other in zip(
            weights(card.folder).values(), weights(plain[0].folder).values(), strict=True
        )
    ]
    assert max(apart) < (0.05 if bfloat16 else 1e-5)
    assert (max(apart) > 1e-4) is bfloat16


def test_mofo_moves_less(tmp_path):
    """One step of it moves at most the fraction of every matrix."""
    optimizer = Optimizer("mofo", rate=1e-3, warm_up=0.0, fraction=0.2)
    recipe = dataclasses.replace(RECIPE, optimizer=optimizer, batch=200, epochs=1, held_out=0)
    card, _ = run(tmp_path / "expert", recipe)
    assert card.facts["steps"] == 1
    assert aside(card) == []
    before, after = weights(Path(base())), weights(card.folder)
    for name, tensor in after.items():
        share = (tensor != before[name]).float().mean().item()
        assert share < 0.21 if tensor.ndim > 1 else share > 0.5, name


def test_a_tuning_that_gets_no_better_ends_and_keeps_its_best(tmp_path):
    """At this rate the loss is soon higher than before."""
    wild = Optimizer(rate=0.3, warm_up=0.0)
    recipe = dataclasses.replace(RECIPE, optimizer=wild, epochs=10, checks=20, patience=2)
    card, _ = run(tmp_path / "expert", recipe)
    facts, losses = card.facts, aside(card)
    checks = [loss["step"] for loss in facts["losses"] if "held_out" in loss]
    best = min(range(1, len(losses)), key=losses.__getitem__)
    assert best == len(losses) - 3  # two more checks, then the end
    assert facts["kept_step"] == checks[best]
    assert facts["steps"] == checks[-1]


@pytest.mark.parametrize("patience", [0, 2])
def test_killed_before_its_weights_were_written(tmp_path, monkeypatch, patience):
    """The last checkpoint is all there is; nothing more is learnt."""
    wild = Optimizer(rate=0.3, warm_up=0.0)
    recipe = dataclasses.replace(RECIPE, optimizer=wild, checks=6, patience=patience)
    whole, _ = run(tmp_path / "whole", recipe)

    def die(*_):
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr(tuning, "_write", die)
        with pytest.raises(KeyboardInterrupt):
            run(tmp_path / "killed", recipe)
    card, _ = run(tmp_path / "killed", recipe)
    assert same(card.folder, whole.folder)
    for name in ("steps", "kept_step", "tokens_seen", "losses"):
        assert card.facts[name] == whole.facts[name]


OPTIONS = ("--batch", 4, "--micro-batch", 2, "--sequence", 32, "--held-out", 0.1, "--rate", 3e-3)
WAYS = {
    "lora": ("--lora", "--rank", 4, "--dropout", 0.2),
    "full": (),
    "mofo": ("--optimizer", "mofo", "--fraction", 0.2),
    "patient": ("--patience", 3),
}
FULL = pytest.mark.full


@pytest.mark.parametrize(
    ("way", "steps"),
    [
        ("lora", (7,)),
        pytest.param("lora", (2, 5, 9), marks=FULL),
        pytest.param("full", (4, 10), marks=FULL),
        pytest.param("mofo", (3, 9), marks=FULL),
        pytest.param("patient", (4, 8), marks=FULL),
    ],
)
def test_killed_on_the_way_it_gives_the_same_weights(tmp_path, way, steps):
    """SIGKILL in or after a checkpoint; dropout and the order of rows go on as they were."""
    words = (base(), write_corpus(tmp_path / "corpus"), *OPTIONS, *WAYS[way], "--checks", 99)
    out = tmp_path / "killed"
    for step in steps:
        killed(command(*words, "--out", out), out, step)
        assert json.loads((out / "card.json").read_text())["state"] == "started"
    optimizer = Optimizer("mofo" if way == "mofo" else "adamw", rate=3e-3, fraction=0.2)
    recipe = dataclasses.replace(
        RECIPE,
        optimizer=optimizer if way == "mofo" else FAST,
        lora=LORA.lora if way == "lora" else None,
        checks=99,
        patience=3 if way == "patient" else 0,
    )
    undisturbed, moments = run(tmp_path / "undisturbed", recipe)
    assert moments[0].step == 0
    resumed, moments = run(out, recipe)
    assert moments[0].step >= steps[-1] - 1
    assert same(resumed.folder, undisturbed.folder)
    for name in ("steps", "kept_step", "tokens_seen", "losses"):
        assert resumed.facts[name] == undisturbed.facts[name]
    assert not (out / "checkpoints").exists()


CHATS = Corpus(
    tuple(
        Document((Message("user", f"What of town {n}?"), Message("assistant", f"{n} boats.")))
        for n in range(20)
    )
)


def test_chats_are_learnt_through_the_template_given(tmp_path):
    recipe = dataclasses.replace(RECIPE, sequence=128, epochs=4)
    card, _ = run(tmp_path / "expert", recipe, CHATS, TEMPLATE)
    assert aside(card)[-1] < 0.8 * aside(card)[0]
    assert (card.folder / "chat_template.jinja").read_text() == TEMPLATE
    assert load_model(str(card.folder), "cpu", "auto").vocabulary.chat_template == TEMPLATE


def test_what_cannot_be_tuned_leaves_nothing_behind(tmp_path):
    out = tmp_path / "expert"
    with pytest.raises(TuningError, match="has no chat template: give one with --chat-template"):
        run(out, learnt=CHATS)
    with pytest.raises(TuningError, match="reads 512 tokens at most"):
        run(out, dataclasses.replace(RECIPE, sequence=513))
    with pytest.raises(TuningError, match="no answer of the corpus begins within --sequence"):
        run(out, dataclasses.replace(RECIPE, sequence=8), CHATS, TEMPLATE)
    with pytest.raises(PairError, match="is not a directory"):
        tune(Base("./nowhere", device="cpu"), corpus(), RECIPE, out, lambda _: None)
    assert not out.exists()
