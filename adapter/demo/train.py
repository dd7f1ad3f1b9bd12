"""Train the demo's models from nothing: `python -m adapter.demo.train --out DIR`."""

import argparse
import json
import logging
import time
from collections.abc import Iterable
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import torch
import transformers
from tokenizers import Tokenizer
from torch.nn import functional
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast

from adapter.demo import vocabulary
from adapter.demo.almanac import SEED, World
from adapter.demo.export import write_gguf
from adapter.demo.measure import exact_match
from adapter.demo.vocabulary import END, END_ID

CONTEXT = 512
SEQUENCE = 256
TOKENIZER_EDITIONS = 3
REPORTS = 20

log = logging.getLogger("adapter.demo.train")


@dataclass(frozen=True)
class Recipe:
    """How long and how fast to train; Muon takes the matrices, AdamW all the rest."""

    editions: int
    muon_rate: float
    adam_rate: float
    batch: int
    warm_up: int
    decay: float


@dataclass(frozen=True)
class Size:
    """The shape of one of the two architectures."""

    hidden: int
    feed_forward: int
    layers: int
    heads: int
    seed: int


@dataclass(frozen=True)
class Part:
    """One tokenizer, one shape, and the two trainings that give two models."""

    size: Size
    first: Recipe
    tuning: Recipe


PARTS = {
    "pair": Part(
        Size(hidden=128, feed_forward=384, layers=4, heads=4, seed=1),
        Recipe(75, muon_rate=5e-3, adam_rate=3e-3, batch=16, warm_up=50, decay=0.3),
        Recipe(80, muon_rate=5e-4, adam_rate=1e-4, batch=8, warm_up=10, decay=0.5),
    ),
    "hosted": Part(
        Size(hidden=256, feed_forward=704, layers=4, heads=4, seed=2),
        Recipe(70, muon_rate=5e-3, adam_rate=3e-3, batch=16, warm_up=50, decay=0.3),
        Recipe(80, muon_rate=5e-4, adam_rate=1e-4, batch=8, warm_up=10, decay=0.5),
    ),
}


class Optimizers:
    """Muon and AdamW side by side under one schedule: warm up, hold, fall to nothing."""

    def __init__(self, model: Any, recipe: Recipe, steps: int) -> None:
        """Give each parameter to the optimizer that suits it."""
        matrices: list[torch.nn.Parameter] = []
        others: list[torch.nn.Parameter] = []
        for name, parameter in model.named_parameters():
            hidden = parameter.ndim > 1 and "embed" not in name
            (matrices if hidden else others).append(parameter)
        # With AdamW alone the facts take about three times as many steps to learn.
        muon = torch.optim.Muon(
            matrices, lr=recipe.muon_rate, weight_decay=0.1, adjust_lr_fn="match_rms_adamw"
        )
        adam = torch.optim.AdamW(
            others, lr=recipe.adam_rate, betas=(0.9, 0.95), weight_decay=0.0, fused=True
        )
        self._rates = [(muon, recipe.muon_rate), (adam, recipe.adam_rate)]
        self._recipe, self._steps, self._model = recipe, steps, model

    def step(self, number: int) -> None:
        """Apply the gradients of one step and clear them."""
        torch.nn.utils.clip_grad_norm_(self._model.parameters(), 1.0)
        for optimizer, rate in self._rates:
            for group in optimizer.param_groups:
                group["lr"] = rate * self._factor(number)
            optimizer.step()
            optimizer.zero_grad(set_to_none=True)

    def _factor(self, number: int) -> float:
        rise = (number + 1) / self._recipe.warm_up
        fall = (self._steps - number) / (self._steps * self._recipe.decay)
        return min(1.0, rise, fall)


def new_model(size: Size, vocabulary_size: int) -> Any:
    """Return an untrained model."""
    torch.manual_seed(size.seed)
    config = LlamaConfig(
        vocab_size=vocabulary_size,
        hidden_size=size.hidden,
        intermediate_size=size.feed_forward,
        num_hidden_layers=size.layers,
        num_attention_heads=size.heads,
        num_key_value_heads=size.heads,
        max_position_embeddings=CONTEXT,
        tie_word_embeddings=True,
        bos_token_id=END_ID,
        eos_token_id=END_ID,
    )
    return LlamaForCausalLM(config)


def pack(tokenizer: Tokenizer, documents: Iterable[str]) -> torch.Tensor:
    """Return the documents as rows of equal length; each begins with the end token."""
    encodings = tokenizer.encode_batch(list(documents))
    ids = torch.tensor([index for encoding in encodings for index in encoding.ids])
    return ids[: len(ids) // SEQUENCE * SEQUENCE].view(-1, SEQUENCE)


def fit(model: Any, rows: torch.Tensor, recipe: Recipe, title: str) -> dict[str, Any]:
    """Train the model on the rows once, in their order; return what the card tells of it."""
    steps = len(rows) // recipe.batch
    optimizers = Optimizers(model, recipe, steps)
    start, losses = time.monotonic(), []
    model.train()
    for number in range(steps):
        batch = rows[number * recipe.batch : (number + 1) * recipe.batch]
        loss = _loss(model, batch)
        loss.backward()  # type: ignore[no-untyped-call]
        optimizers.step(number)
        losses.append(loss.item())
        if (number + 1) % max(1, steps // REPORTS) == 0:
            _report(title, number + 1, steps, losses, time.monotonic() - start)
    minutes = (time.monotonic() - start) / 60
    return {
        **asdict(recipe),
        "steps": steps,
        "tokens": steps * recipe.batch * SEQUENCE,
        "minutes": round(minutes, 1),
        "loss": round(sum(losses[-20:]) / len(losses[-20:]), 4),
    }


def _loss(model: Any, batch: torch.Tensor) -> torch.Tensor:
    with torch.autocast("cpu", dtype=torch.bfloat16):
        logits = model(input_ids=batch, use_cache=False).logits
    scores = logits[:, :-1].reshape(-1, logits.shape[-1]).float()
    return functional.cross_entropy(scores, batch[:, 1:].reshape(-1))


def _report(title: str, step: int, steps: int, losses: list[float], seconds: float) -> None:
    recent = losses[-max(1, steps // REPORTS) :]
    log.info(
        "%s: step %d of %d, loss %.3f, %.1f minutes left",
        title,
        step,
        steps,
        sum(recent) / len(recent),
        seconds / step * (steps - step) / 60,
    )


def train_part(name: str, world: World, out: Path, *, reuse: bool) -> dict[str, Any]:
    """Train one tokenizer and its two models, write them, and return their card."""
    part = PARTS[name]
    make = vocabulary.pair_tokenizer if name == "pair" else vocabulary.hosted_tokenizer
    tokenizer = make(world.first_training(TOKENIZER_EDITIONS))
    model = new_model(part.size, tokenizer.get_vocab_size())
    card: dict[str, Any] = {
        "seed": part.size.seed,
        "parameters": sum(parameter.numel() for parameter in model.parameters()),
        "vocabulary": tokenizer.get_vocab_size(),
    }
    checkpoint = out / "checkpoints" / f"{name}.pt"
    trainings = {
        "first": (part.first, world.first_training),
        "tuning": (part.tuning, world.tuning),
    }
    for training, (recipe, documents) in trainings.items():
        if training == "first" and reuse and checkpoint.exists():
            saved = torch.load(checkpoint, weights_only=True)
            model.load_state_dict(saved["model"])
            card[training] = saved["card"]
        else:
            rows = pack(tokenizer, documents(recipe.editions))
            card[training] = fit(model, rows, recipe, f"{name}, {training}")
            card[training]["exact match"] = evaluate(model, tokenizer, world)
        if training == "first":
            checkpoint.parent.mkdir(parents=True, exist_ok=True)
            torch.save({"model": model.state_dict(), "card": card[training]}, checkpoint)
        log.info("%s, %s: %s", name, training, card[training])
        write(name, training, model, tokenizer, out)
    return card


def evaluate(model: Any, tokenizer: Tokenizer, world: World) -> dict[str, float]:
    """Return the exact match of greedy answers on the four sets of questions."""
    new, old = world.validation()
    sets = {
        "new": world.questions_new(),
        "old": world.questions_old(),
        "new, validation": new,
        "old, validation": old,
    }
    return {
        name: round(exact_match(model, tokenizer, questions), 4) for name, questions in sets.items()
    }


def write(name: str, training: str, model: Any, tokenizer: Tokenizer, out: Path) -> None:
    """Write one model the way the demo serves it: GGUF for the hosted, folders for the pair."""
    fast = PreTrainedTokenizerFast(  # type: ignore[no-untyped-call]
        tokenizer_object=tokenizer, bos_token=END, eos_token=END, model_max_length=CONTEXT
    )
    if name == "hosted":
        title = {"first": "hosted", "tuning": "hosted-tuned"}[training]
        write_gguf(model, tokenizer, out / f"{title}.gguf")
        fast.save_pretrained(out / "hosted-tokenizer")
        return
    folder = out / {"first": "antiexpert", "tuning": "expert"}[training]
    half = type(model)(model.config)
    half.load_state_dict(model.state_dict())
    half.to(torch.float16).save_pretrained(folder)
    fast.save_pretrained(folder)


def main() -> None:
    """Train the parts asked for and write weights and card."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--out", type=Path, required=True)
    parser.add_argument("--part", choices=[*PARTS, "all"], default="all")
    parser.add_argument("--reuse", action="store_true", help="tune DIR's first models again")
    arguments = parser.parse_args()
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(message)s")
    arguments.out.mkdir(parents=True, exist_ok=True)
    world = World(SEED)
    path = arguments.out / "card.json"
    card = json.loads(path.read_text()) if path.exists() else {}
    card |= {"world": _world_card(world), "versions": _versions()}
    for name in PARTS if arguments.part == "all" else [arguments.part]:
        card[name] = train_part(name, world, arguments.out, reuse=arguments.reuse)
        path.write_text(json.dumps(card, indent=2) + "\n")


def _world_card(world: World) -> dict[str, Any]:
    new, old = world.validation()
    return {
        "seed": world.seed,
        "questions": {
            "new": len(world.questions_new()),
            "old": len(world.questions_old()),
            "new, validation": len(new),
            "old, validation": len(old),
        },
        "recipes chosen on": "the validation questions, never on the new and old ones",
    }


def _versions() -> dict[str, str]:
    return {"torch": torch.__version__, "transformers": transformers.__version__}


if __name__ == "__main__":
    main()
