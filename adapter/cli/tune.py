"""adapter tune: from a base model and a corpus to an expert."""

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from enum import StrEnum
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from adapter.cli.progress import progress
from adapter.errors import TuningError

if TYPE_CHECKING:  # loaded when used, so that --help is quick
    from adapter.tuning.card import Card
    from adapter.tuning.watching import Moment, Watch

_FEW = 20
"""Steps below which a tuning hardly moves the weights at the paper's rates."""


class OptimizerName(StrEnum):
    """The optimisers there are."""

    adamw = "adamw"
    mofo = "mofo"


class Dtype(StrEnum):
    """What the forwards are computed in."""

    auto = "auto"
    float32 = "float32"
    bfloat16 = "bfloat16"


class Device(StrEnum):
    """Where to tune."""

    auto = "auto"
    cpu = "cpu"
    cuda = "cuda"


def tune(  # noqa: PLR0913 - a command's options are its arguments
    base: Annotated[
        str,
        typer.Argument(help="The model to tune, later the anti-expert: a directory or hub name."),
    ],
    corpus: Annotated[
        Path,
        typer.Argument(
            help="A folder of .txt, .md and .jsonl files, or one of them. JSONL lines have text, "
            "messages, or prompt and completion; of the latter two only answers are learnt."
        ),
    ],
    *,
    out: Annotated[Path, typer.Option(help="The expert's folder, for pair.experts.")],
    lora: Annotated[
        bool, typer.Option("--lora", help="Low-rank adapters, not all weights.")
    ] = False,
    rank: Annotated[int, typer.Option(min=1, help="Of the adapters.")] = 64,
    lora_alpha: Annotated[float, typer.Option(min=0, help="Of the adapters.")] = 16,
    dropout: Annotated[float, typer.Option(min=0, max=0.9, help="Of the adapters.")] = 0.1,
    optimizer: Annotated[
        OptimizerName, typer.Option(help="mofo moves only where the momentum is largest.")
    ] = OptimizerName.adamw,
    fraction: Annotated[
        float, typer.Option(min=0.001, max=1, help="The share of each tensor that mofo moves.")
    ] = 0.1,
    rate: Annotated[
        float | None,
        typer.Option(min=0, help="Learning rate.  [default: 2e-5, with --lora 1e-4]"),
    ] = None,
    weight_decay: Annotated[float, typer.Option(min=0, help="Of matrices.")] = 0.0,
    warm_up: Annotated[float, typer.Option(min=0, max=0.99, help="Share of all steps.")] = 0.04,
    epochs: Annotated[float, typer.Option(min=0.01, help="Times the corpus is read.")] = 2.0,
    batch: Annotated[int, typer.Option(min=1, help="Rows of tokens a step.")] = 128,
    micro_batch: Annotated[
        int, typer.Option(min=1, help="Rows at a time; memory grows with it.")
    ] = 1,
    sequence: Annotated[
        int | None,
        typer.Option(min=8, help="Tokens a row.  [default: 2048, or the base's window]"),
    ] = None,
    held_out: Annotated[
        float, typer.Option(min=0, max=0.5, help="Share of documents only measured on.")
    ] = 0.02,
    checks: Annotated[
        int, typer.Option(min=1, help="Held-out losses and checkpoints on the way.")
    ] = 10,
    patience: Annotated[
        int, typer.Option(min=0, help="End after so many checks without a better one; 0: never.")
    ] = 0,
    seed: Annotated[int, typer.Option(min=0, help="Of the order of rows and of dropout.")] = 0,
    dtype: Annotated[
        Dtype, typer.Option(help="Of the forwards; auto: bfloat16 on a GPU, else float32.")
    ] = Dtype.auto,
    gradient_checkpointing: Annotated[
        bool, typer.Option("--gradient-checkpointing", help="Less memory, a third more time.")
    ] = False,
    device: Annotated[
        Device, typer.Option(help="auto takes a GPU where there is one.")
    ] = Device.auto,
    revision: Annotated[str | None, typer.Option(help="Of a base on the hub.")] = None,
    chat_template: Annotated[
        Path | None, typer.Option(help="For chats, where the base has none or another.")
    ] = None,
    ignore: Annotated[
        list[str] | None,
        typer.Option(metavar="FIELD", help="A field of JSONL lines to leave aside."),
    ] = None,
    as_json: Annotated[bool, typer.Option("--json", help="Print the run card.")] = False,
) -> None:
    """Tune a small model on a corpus: continued pre-training on texts, answers only on chats.

    The defaults are the paper's. Killed, the same command goes on from the last checkpoint and
    gives the same weights. What was done is in card.json beside them.

    Examples: adapter tune ./base ./bulletins --out ./experts/news --batch 8 --rate 2e-4

    adapter tune meta-llama/Llama-3.2-1B chats.jsonl --out ./experts/support --lora
    """
    if batch % micro_batch:
        raise typer.BadParameter(
            f"--batch {batch} is not a multiple of --micro-batch {micro_batch}"
        )
    from adapter.tuning.recipe import FULL_RATE, LORA_RATE, Lora, Optimizer, Recipe

    default = LORA_RATE if lora else FULL_RATE
    recipe = Recipe(
        optimizer=Optimizer(
            optimizer.value, default if rate is None else rate, weight_decay, warm_up, fraction
        ),
        lora=Lora(rank, lora_alpha, dropout) if lora else None,
        epochs=epochs,
        batch=batch,
        micro_batch=micro_batch,
        sequence=sequence,
        held_out=held_out,
        checks=checks,
        patience=patience,
        seed=seed,
        bfloat16=dtype is Dtype.bfloat16,
        gradient_checkpointing=gradient_checkpointing,
    )
    with _watching() as watch:
        from adapter.tuning.corpus import read_corpus

        learnt = read_corpus(corpus, ignore or ())
        template = _text(chat_template)
        with _packages():
            from adapter.tuning.tune import Base
            from adapter.tuning.tune import tune as make
        source = Base(base, revision, _device(device), template)
        if dtype is Dtype.auto:
            recipe = replace(recipe, bfloat16=source.device == "cuda")
        card = make(source, learnt, recipe, out, watch)
    typer.echo(json.dumps(card.facts) if as_json else _summary(card))


def _device(device: Device) -> str:
    import torch

    from adapter.pair.loading import choose_device

    if device is Device.cuda and not torch.cuda.is_available():
        raise TuningError("torch finds no GPU here: leave --device out, or install torch for it")
    return choose_device(device.value)


def _text(template: Path | None) -> str | None:
    """A chat template's text, checked. Raises TuningError and SettingsError."""
    if template is None:
        return None
    from adapter.templates import compile_template

    try:
        text = template.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise TuningError(f"the chat template {template} cannot be read") from error
    compile_template(text)
    return text


@contextmanager
def _packages() -> Iterator[None]:
    """What tuning needs beside the service's own packages. Raises TuningError."""
    try:
        import accelerate  # noqa: F401 - transformers asks for it late, and at length
        import peft  # noqa: F401

        yield
    except ImportError as error:
        raise TuningError(
            f"tuning needs the package {error.name}: pip install 'proxytune-adapter[tune]'"
        ) from error


@contextmanager
def _watching() -> "Iterator[Watch]":
    """With the last losses."""
    with progress("reading the model and the corpus") as advance:
        told: float | None = None

        def watch(moment: "Moment") -> None:
            nonlocal told
            losses, line = _losses(moment), None
            if moment.held_out != told:
                told, line = moment.held_out, f"step {moment.step} of {moment.steps}: {losses}"
            advance(moment.step, moment.steps, losses, line)

        yield watch


def _losses(moment: "Moment") -> str:
    losses = (("loss", moment.loss), ("held out", moment.held_out))
    return ", ".join(f"{name} {loss:.3f}" for name, loss in losses if loss is not None) or "tuning"


def _summary(card: "Card") -> str:
    facts = card.facts
    aside = [loss["held_out"] for loss in facts["losses"] if "held_out" in loss]
    lines = [
        f"{card.folder}: {facts['steps']} steps, {facts['tokens_seen']:,} tokens, "
        f"{facts['seconds']:.0f} s"
    ]
    if aside:
        first, *_, last = aside
        lines.append(
            f"held-out loss {first:.3f} before, {min(aside):.3f} at its lowest, {last:.3f} at the "
            "end (nats a token)"
        )
    if facts["kept_step"] != facts["steps"]:
        lines.append(f"the weights are those of step {facts['kept_step']}, where it was lowest")
    if facts["cut"]:
        lines.append(f"{facts['cut']:,} answers did not fit a row: cut, or left out")
    if facts["steps"] < _FEW:
        lines.append(
            f"only {facts['steps']} steps: with so small a corpus lower --batch, or raise "
            "--epochs and --rate"
        )
    return "\n".join(lines)
