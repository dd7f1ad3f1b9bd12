"""What AdamW and MoFO forget of the almanac's old facts while they learn the new ones.

The bulletins of the new year recall old facts, so that little is forgotten. Here those sentences
are left out, and the expert is asked at every check.
"""

import argparse
import shutil
import tempfile
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer

from adapter.demo.almanac import NEW_YEAR, questions, world
from adapter.demo.measure import exact_match
from adapter.demo.stage import WEIGHTS
from adapter.pair.loading import load_model
from adapter.tuning.corpus import Corpus, Document
from adapter.tuning.recipe import Optimizer, Recipe
from adapter.tuning.tune import Base, tune
from adapter.tuning.watching import Moment
from tests.bench.stats import header, row

BASE = WEIGHTS / "antiexpert"
LEVELS = (0.5, 0.9, 0.97)


def options(parser: argparse.ArgumentParser) -> None:
    """How much is told, how often, how fast."""
    parser.add_argument("--editions", type=int, default=24)
    parser.add_argument("--epochs", type=float, default=6)
    parser.add_argument("--rate", type=float, default=1e-3)
    parser.add_argument("--fraction", type=float, default=0.15)
    parser.add_argument("--checks", type=int, default=12)


def run(args: argparse.Namespace) -> dict[str, Any]:
    """For each optimiser, the exact match on new and old facts at every check."""
    torch.set_num_threads(1)
    found: dict[str, Any] = {"rate": args.rate, "fraction": args.fraction}
    for optimizer in (
        Optimizer("adamw", args.rate),
        Optimizer("mofo", args.rate, fraction=args.fraction),
    ):
        name, curve = optimizer.name, _curve(optimizer, args)
        found[name] = {"curve": curve, "at": [_first(curve, level) for level in LEVELS]}
    return found


def report(result: dict[str, Any]) -> str:
    """The curves, and what is left of the old facts once so many new ones are known."""
    lines = [*header("step", "new facts", "old facts")]
    for name in ("adamw", "mofo"):
        lines += [row(f"{name} {c['step']}", c["new"], c["old"]) for c in result[name]["curve"]]
    lines += ["", *header("new facts known", "adamw: old", "mofo: old")]
    for n, level in enumerate(LEVELS):
        both = (result[name]["at"][n] for name in ("adamw", "mofo"))
        lines.append(row(f"{level:.0%}", *("never" if x is None else x["old"] for x in both)))
    return "\n".join(lines)


def _corpus(editions: int) -> Corpus:
    """The bulletins without the sentences that recall earlier years."""
    texts = []
    for text in world().tuning(editions):
        sentences = [s for s in text.rstrip(".").split(". ") if str(NEW_YEAR) in s]
        texts.append(". ".join(sentences) + ".")
    return Corpus(tuple(map(Document, texts)))


def _curve(optimizer: Optimizer, args: argparse.Namespace) -> list[dict[str, float]]:
    recipe = Recipe(
        optimizer=optimizer,
        epochs=args.epochs,
        batch=8,
        micro_batch=8,
        sequence=256,
        checks=args.checks,
    )
    curve: list[dict[str, float]] = []
    with tempfile.TemporaryDirectory() as folder:
        out = Path(folder) / "expert"

        def watch(moment: Moment) -> None:
            """Ask the checkpoint that was written before this step."""
            step = moment.step - 1
            checkpoint = out / "checkpoints" / f"checkpoint-{step}"
            if checkpoint.exists() and step not in {c["step"] for c in curve}:
                for file in ("tokenizer.json", "tokenizer_config.json"):
                    shutil.copyfile(BASE / file, checkpoint / file)
                curve.append({"step": step, **_asked(checkpoint)})

        card = tune(Base(str(BASE), device="cpu"), _corpus(args.editions), recipe, out, watch)
        curve.append({"step": card.facts["steps"], **_asked(out)})
    return curve


def _asked(folder: Path) -> dict[str, float]:
    network = load_model(str(folder), "cpu", "float32").network
    tokenizer = Tokenizer.from_file(str(BASE / "tokenizer.json"))
    new, old = (exact_match(network, tokenizer, asked) for asked in questions())
    return {"new": round(new, 4), "old": round(old, 4)}


def _first(curve: list[dict[str, float]], level: float) -> dict[str, float] | None:
    return next((c for c in curve if c["new"] >= level), None)
