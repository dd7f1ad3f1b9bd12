"""One tuning, from base and corpus to the folder of an expert."""

import hashlib
import json
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from transformers import TrainerState

from adapter.errors import TuningError
from adapter.pair.loading import LocalModel, choose_device, find_folder, load_model
from adapter.request import Message
from adapter.tuning.answers import answer_rows
from adapter.tuning.card import Card, open_card
from adapter.tuning.checkpoints import FOLDER
from adapter.tuning.corpus import Corpus, Document, held_out
from adapter.tuning.packing import pack
from adapter.tuning.recipe import SEQUENCE, Recipe
from adapter.tuning.rows import Rows
from adapter.tuning.training import loaded_as, prepared, train
from adapter.tuning.watching import Watch, Watching, losses_of

_TOKENIZER = ("tokenizer*", "special_tokens_map.json", "added_tokens.json", "chat_template*")
_VOCABULARY = ("vocab.*", "merges.txt", "*.model")
_PACKAGES = ("accelerate", "peft", "proxytune-adapter", "torch", "transformers")


@dataclass(frozen=True, slots=True)
class Base:
    """The model to tune: a directory or a hub name, and where it runs.

    `template` is the chat template for a base that has none of its own.
    """

    name: str
    revision: str | None = None
    device: str = "auto"
    template: str | None = None


def tune(base: Base, corpus: Corpus, recipe: Recipe, out: Path, watch: Watch) -> Card:
    """The expert in `out`, as `pair.experts` takes it, and its card.

    What was begun there with the same base, corpus and recipe is taken up where it was killed,
    and comes out as if it had not been. Raises TuningError and PairError.
    """
    folder = find_folder(base.name, base.revision)
    card = open_card(out, _fixed(base, folder, corpus, recipe))
    if card.done:
        return card
    device = choose_device(base.device)
    model = load_model(str(folder), device, loaded_as(recipe))
    learnt, aside, cut = _rows(model, base, corpus, recipe)
    network = prepared(model.network, recipe, base.name)
    card = card.told(
        versions={package: version(package) for package in _PACKAGES},
        device=device if device == "cpu" else torch.cuda.get_device_name(),
        tokens={"corpus": learnt.tokens, "held_out": aside.tokens},
        cut=cut,
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
    )
    began, spent = time.monotonic(), card.seconds

    def seconds() -> float:
        return round(spent + time.monotonic() - began, 1)

    watching = Watching(watch, lambda losses: card.told(seconds=seconds(), losses=losses))
    state = train(network, learnt, aside, recipe, out / FOLDER, watching)
    _write(network, base, folder, out, recipe.lora is not None)
    card = card.told(state="done", seconds=seconds(), **_outcome(state))
    shutil.rmtree(out / FOLDER)
    return card


def _outcome(state: TrainerState) -> dict[str, Any]:
    return {
        "steps": state.global_step,
        "kept_step": state.best_global_step or state.global_step,
        "tokens_seen": int(state.num_input_tokens_seen),
        "losses": losses_of(state),
    }


def _fixed(base: Base, folder: Path, corpus: Corpus, recipe: Recipe) -> dict[str, Any]:
    """What the weights depend on, and all that they do."""
    learnt, aside = held_out(corpus, recipe.held_out)
    digests = {p.name: _digest(p) for p in sorted(folder.glob("*.safetensors"))}
    return {
        "base": {"name": base.name, "revision": base.revision, "sha256": digests},
        "data": {
            "sha256": corpus.digest,
            "kind": "chats" if corpus.is_chat else "texts",
            "documents": len(learnt),
            "held_out": len(aside),
        },
        "settings": {**recipe.facts(), "template": base.template},
    }


def _digest(file: Path) -> str:
    with file.open("rb") as stream:
        return hashlib.file_digest(stream, "sha256").hexdigest()


def _rows(model: LocalModel, base: Base, corpus: Corpus, recipe: Recipe) -> tuple[Rows, Rows, int]:
    """Rows to learn, rows to measure on, and how many answers did not fit theirs."""
    length = recipe.sequence or min(SEQUENCE, model.window)
    if length > model.window:
        raise TuningError(
            f"{base.name} reads {model.window} tokens at most: lower --sequence to that"
        )
    template = base.template or model.vocabulary.chat_template
    if corpus.is_chat and template is None:
        raise TuningError(f"{base.name} has no chat template: give one with --chat-template FILE")

    def rows(documents: Sequence[Document]) -> tuple[Rows, int]:
        said = [document.content for document in documents]
        if corpus.is_chat:
            chats = cast("list[tuple[Message, ...]]", said)
            return answer_rows(chats, model.vocabulary, template or "", length)
        return pack(cast("list[str]", said), model.vocabulary, length), 0

    (learnt, cut), (aside, more) = map(rows, held_out(corpus, recipe.held_out))
    if not len(learnt):
        raise TuningError("no answer of the corpus begins within --sequence tokens: raise it")
    return learnt, aside, cut + more


def _write(network: Any, base: Base, folder: Path, out: Path, lora: bool) -> None:
    """Weights in the base's own precision, or the adapter alone, and the base's tokenizer."""
    if lora:
        network.save_pretrained(out, save_embedding_layers=False)
    else:
        config = json.loads((folder / "config.json").read_bytes())
        stored = config.get("dtype") or config.get("torch_dtype") or "float32"
        network.to(getattr(torch, stored)).save_pretrained(out)
    for pattern in (*_TOKENIZER, *_VOCABULARY):
        for file in folder.glob(pattern):
            if file.is_file():
                shutil.copyfile(file, out / file.name)
    if base.template is not None:
        (out / "chat_template.jinja").write_text(base.template, encoding="utf-8")
