"""Training rows on transformers' Trainer; a killed training is taken up at its last checkpoint."""

import math
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

from adapter.tuning.checkpoints import STATE, has_ended, last_checkpoint
from adapter.tuning.mofo import MoFO
from adapter.tuning.recipe import Recipe
from adapter.tuning.rows import Rows, collate
from adapter.tuning.watching import Watching


def loaded_as(recipe: Recipe) -> str:
    """Weights that are tuned need float32, or small steps are rounded away; frozen ones do not."""
    return "bfloat16" if recipe.lora and recipe.bfloat16 else "float32"


def prepared(network: PreTrainedModel, recipe: Recipe, name: str) -> PreTrainedModel:
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


def train(
    network: PreTrainedModel,
    learnt: Rows,
    aside: Rows,
    recipe: Recipe,
    folder: Path,
    watching: Watching,
) -> TrainerState:
    """Tune the network in place on one device, and return how it went.

    Begins at the last checkpoint in `folder`, where there is one.
    """
    checkpoint = last_checkpoint(folder)
    measured = len(aside) > 0
    arguments = TrainingArguments(
        output_dir=str(folder.absolute()),
        use_cpu=network.device.type == "cpu",
        eval_on_start=measured and checkpoint is None,
        **_options(recipe, len(learnt), measured),
    )
    arguments._n_gpu = min(1, arguments.n_gpu)  # with more, each would take a whole micro-batch
    own: Any = {}
    if recipe.optimizer.name == "mofo":
        options = {"lr": recipe.optimizer.rate, "fraction": recipe.optimizer.fraction}
        own = {"optimizer_cls_and_kwargs": (MoFO, options)}
    trainer = Trainer(
        model=network,
        args=arguments,
        data_collator=cast("Any", collate),
        train_dataset=cast("Any", learnt),
        eval_dataset=cast("Any", aside) if measured else None,
        callbacks=watching.callbacks(recipe.patience if measured else 0),
        **own,
    )
    trainer.remove_callback(PrinterCallback)  # it would print every loss among our output
    if checkpoint is not None and arguments.load_best_model_at_end and has_ended(checkpoint):
        trainer.state = TrainerState.load_from_json(str(checkpoint / STATE))
        trainer._load_best_model()  # train() would go on; this has no public name
    else:
        trainer.train(resume_from_checkpoint=str(checkpoint) if checkpoint else None)
    return trainer.state


def _options(recipe: Recipe, rows: int, measured: bool) -> dict[str, Any]:
    """The recipe in transformers' words."""
    accumulated = recipe.batch // recipe.micro_batch
    together = math.ceil(math.ceil(rows / recipe.micro_batch) / accumulated)
    every = max(1, math.ceil(recipe.epochs * together) // recipe.checks)
    best = measured and recipe.patience > 0
    return {
        "num_train_epochs": recipe.epochs,
        "per_device_train_batch_size": recipe.micro_batch,
        "per_device_eval_batch_size": recipe.micro_batch,
        "gradient_accumulation_steps": accumulated,
        "learning_rate": recipe.optimizer.rate,
        "weight_decay": recipe.optimizer.weight_decay,
        "warmup_steps": recipe.optimizer.warm_up,
        "lr_scheduler_type": "linear",
        "seed": recipe.seed,
        "data_seed": recipe.seed,
        "bf16": recipe.bfloat16,
        "eval_strategy": "steps" if measured else "no",
        "eval_steps": every,
        "save_steps": every,
        "save_total_limit": 2,
        "logging_steps": max(1, every // 5),
        "load_best_model_at_end": best,
        "metric_for_best_model": "eval_loss" if best else None,
        "greater_is_better": False if best else None,
        "restore_callback_states_from_checkpoint": True,
        "prediction_loss_only": True,
        "label_names": ["labels"],
        "include_num_input_tokens_seen": "non_padding",
        "remove_unused_columns": False,
        "report_to": "none",
        "disable_tqdm": True,
        "log_level": "error",
    }
