"""One tuning, from corpus to expert, on transformers' Trainer; a killed one is taken up again."""

import hashlib
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import dataclass
from importlib.metadata import version
from pathlib import Path
from typing import Any, cast

import torch
from transformers import (
    PreTrainedModel,
    PrinterCallback,
    Trainer,
    TrainerState,
    TrainingArguments,
)

from adapter.errors import TuningError
from adapter.pair.loading import LocalModel, choose_device, find_folder, load_model
from adapter.request import Message
from adapter.tuning.answers import answer_rows
from adapter.tuning.card import Card, open_card
from adapter.tuning.checkpoints import FOLDER, STATE, has_ended, last_checkpoint
from adapter.tuning.corpus import Corpus, Document, held_out
from adapter.tuning.mofo import MoFO
from adapter.tuning.packing import pack
from adapter.tuning.recipe import SEQUENCE, Recipe
from adapter.tuning.rows import Rows, collate
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
    model = load_model(str(folder), device, _loaded_as(recipe))
    learnt, aside = _rows(model, base, corpus, recipe)
    network = _prepared(model.network, recipe, base.name)
    card = card.told(
        versions={package: version(package) for package in _PACKAGES},
        device=device if device == "cpu" else torch.cuda.get_device_name(),
        tokens={"corpus": learnt.tokens, "held_out": aside.tokens},
        parameters=sum(p.numel() for p in network.parameters() if p.requires_grad),
    )
    began, spent = time.monotonic(), card.seconds

    def seconds() -> float:
        return round(spent + time.monotonic() - began, 1)

    watching = Watching(watch, lambda losses: card.told(seconds=seconds(), losses=losses))
    checkpoint = last_checkpoint(out / FOLDER)
    arguments = _arguments(
        recipe,
        len(learnt),
        measured=len(aside) > 0,
        device=device,
        folder=(out / FOLDER).absolute(),
        fresh=checkpoint is None,
    )
    trainer = _trainer(network, learnt, aside, recipe, arguments, watching)
    _run(trainer, checkpoint)
    _write(trainer.model, base, folder, out, recipe.lora is not None)
    card = card.told(state="done", seconds=seconds(), **_outcome(trainer.state))
    shutil.rmtree(out / FOLDER)
    return card


def _run(trainer: Trainer, checkpoint: Path | None) -> None:
    """From the beginning or a checkpoint to the weights that are to be kept."""
    best = trainer.args.load_best_model_at_end
    if checkpoint is not None and best and has_ended(checkpoint):
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
        trainer._load_best_model()  # train() would go on; this has no public name
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)


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


def _loaded_as(recipe: Recipe) -> str:
    """Weights that are tuned need float32, or small steps are rounded away; frozen ones do not."""
    return "bfloat16" if recipe.lora and recipe.bfloat16 else "float32"


def _rows(model: LocalModel, base: Base, corpus: Corpus, recipe: Recipe) -> tuple[Rows, Rows]:
    length = recipe.sequence or min(SEQUENCE, model.window)
    if length > model.window:
        raise TuningError(
            f"{base.name} reads {model.window} tokens at most: lower --sequence to that"
        )
    template = base.template or model.vocabulary.chat_template
    if corpus.is_chat and template is None:
        raise TuningError(f"{base.name} has no chat template: give one with --chat-template FILE")

    def rows(documents: Sequence[Document]) -> Rows:
        said = [document.content for document in documents]
        if corpus.is_chat:
            chats = cast("list[tuple[Message, ...]]", said)
            return answer_rows(chats, model.vocabulary, template or "", length)
        return pack(cast("list[str]", said), model.vocabulary, length)

    learnt, aside = (rows(documents) for documents in held_out(corpus, recipe.held_out))
    if not len(learnt):
        raise TuningError("no answer of the corpus begins within --sequence tokens: raise it")
    return learnt, aside


def _prepared(network: PreTrainedModel, recipe: Recipe, name: str) -> PreTrainedModel:
    """The network with the weights that shall move."""
    torch.manual_seed(recipe.seed)
    if recipe.gradient_checkpointing:
        network.activation_checkpointing_enable({"use_reentrant": False})
    if recipe.lora is None:
        return network.requires_grad_(True)
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=recipe.lora.rank,
        lora_alpha=cast("int", recipe.lora.alpha),
        lora_dropout=recipe.lora.dropout,
        target_modules="all-linear",
        task_type="CAUSAL_LM",
        base_model_name_or_path=name,
    )
    mixed: Any = get_peft_model(network, config)
    return cast("PreTrainedModel", mixed)  # it is called like one


def _trainer(
    network: PreTrainedModel,
    learnt: Rows,
    aside: Rows,
    recipe: Recipe,
    arguments: TrainingArguments,
    watching: Watching,
) -> Trainer:
    own: Any = {}
    if recipe.optimizer.name == "mofo":
        options = {"lr": recipe.optimizer.rate, "fraction": recipe.optimizer.fraction}
        own = {"optimizer_cls_and_kwargs": (MoFO, options)}
    trainer = Trainer(
        model=network,
        args=arguments,
        data_collator=cast("Any", collate),
        train_dataset=cast("Any", learnt),
        eval_dataset=cast("Any", aside) if len(aside) else None,
        callbacks=watching.callbacks(recipe.patience if len(aside) else 0),
        **own,
    )
    trainer.remove_callback(PrinterCallback)  # it would print every loss among our output
    return trainer


def _arguments(
    recipe: Recipe, rows: int, *, measured: bool, device: str, folder: Path, fresh: bool
) -> TrainingArguments:
    """The recipe in transformers' words."""
    together = math.ceil(math.ceil(rows / recipe.micro_batch) / _accumulated(recipe))
    best = measured and recipe.patience > 0
    every = max(1, math.ceil(recipe.epochs * together) // recipe.checks)
    return TrainingArguments(
        output_dir=str(folder),
        num_train_epochs=recipe.epochs,
        per_device_train_batch_size=recipe.micro_batch,
        per_device_eval_batch_size=recipe.micro_batch,
        gradient_accumulation_steps=_accumulated(recipe),
        learning_rate=recipe.optimizer.rate,
        weight_decay=recipe.optimizer.weight_decay,
        warmup_steps=recipe.optimizer.warm_up,
        lr_scheduler_type="linear",
        seed=recipe.seed,
        data_seed=recipe.seed,
        bf16=recipe.bfloat16,
        use_cpu=device == "cpu",
        eval_strategy="steps" if measured else "no",
        eval_on_start=measured and fresh,
        eval_steps=every,
        save_steps=every,
        save_total_limit=2,
        logging_steps=max(1, every // 5),
        load_best_model_at_end=best,
        metric_for_best_model="eval_loss" if best else None,
        greater_is_better=False if best else None,
        restore_callback_states_from_checkpoint=True,
        prediction_loss_only=True,
        label_names=["labels"],
        include_num_input_tokens_seen="non_padding",
        remove_unused_columns=False,
        report_to="none",
        disable_tqdm=True,
    )


def _accumulated(recipe: Recipe) -> int:
    return recipe.batch // recipe.micro_batch


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
