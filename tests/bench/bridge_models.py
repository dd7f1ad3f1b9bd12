"""The bridge between real models: how likely the steered upstream finds the true next token.

The hosted model is read directly, its top tokens taken as an API would send them; pair and expert
share a tokenizer of their own. The text should be what the expert was tuned for, held out.
"""

import argparse
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, PreTrainedModel

from adapter.pair.loading import LocalModel, load_model
from adapter.pair.network import Network
from adapter.pair.rows import masses
from tests.bench.rules import Rule, rules
from tests.bench.stats import differences, header, means, normalised, row, verdict
from tokenizer_maps import (
    Clamp,
    Context,
    FastBridge,
    Masses,
    Sets,
    TokenMap,
    Tree,
    Vocabulary,
    load_vocabulary,
)

K = 20
PRUNE = 1e-4
WINDOW = 320  # hosted tokens read at once
PROMPT = 160  # of them, the first that are only read
EACH = 5  # positions of a window
ALPHAS = (0.5, 1.0)

Floats = NDArray[np.float64]
Result = dict[str, Any]
Distance = Callable[[Floats, Floats, Floats], float]


class Position(NamedTuple):
    """One place in the text: what was before it, the hosted model's top tokens, and the truth."""

    context: Context
    candidates: list[int]
    logprobs: Floats
    true: int  # an index of candidates


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument(
        "--hosted", type=Path, required=True, help="model directory, or GGUF file (accelerate)"
    )
    parser.add_argument("--pair", required=True, help="the untuned model's directory")
    parser.add_argument("--expert", required=True, help="the tuned model's directory")
    parser.add_argument("--text", type=Path, required=True, help="a text neither was tuned on")
    parser.add_argument("--positions", type=int, default=200)


def run(args: argparse.Namespace) -> Result:
    """Every rule at every position."""
    network, upstream = _hosted(args.hosted)
    models = [load_model(name, "cpu", "auto") for name in (args.expert, args.pair)]
    vocabulary = models[0].vocabulary
    fast = FastBridge(TokenMap.build(upstream, vocabulary), models[1].end, Clamp())
    found = rules(fast, _Pair(models), PRUNE)
    text = args.text.read_text("utf-8").encode()
    deltas: list[dict[str, Floats]] = []
    places = []
    for place in _positions(network, upstream, vocabulary.start, text, args.positions):
        deltas.append(_offsets(found, place))
        places.append(place)
    return {"hosted": args.hosted.name, "positions": len(places)} | _summary(places, deltas)


def _hosted(path: Path) -> tuple[PreTrainedModel, Vocabulary]:
    if path.is_dir():
        model = load_model(str(path), "cpu", "auto")
        return model.network, model.vocabulary
    network = AutoModelForCausalLM.from_pretrained(path.parent, gguf_file=path.name)
    return network.eval(), load_vocabulary(f"gguf:{path}")


class _Pair:
    """Two local models; a tree they have just read is not read again."""

    def __init__(self, models: Sequence[LocalModel]) -> None:
        networks = [Network(model.network, model.blank) for model in models]
        self._texts = [(network, network.text()) for network in networks]
        self._read: Tree | None = None

    def ask(self, tree: Tree, sets: Sets) -> list[Masses]:
        """The masses of both, expert first."""
        if tree != self._read:
            for network, text in self._texts:
                network.evaluate(text, tree)
            self._read = tree
        nodes = np.arange(-1, len(tree.tokens))
        asked = [(text, (sets, text.line(nodes), tree)) for _, text in self._texts]
        return [masses(text.found(), [one])[0] for text, one in asked]


def _positions(
    network: PreTrainedModel, upstream: Vocabulary, start: tuple[int, ...], text: bytes, count: int
) -> Iterator[Position]:
    """Places whose true token is among the hosted model's top k."""
    rng = np.random.default_rng(0)
    spelt = torch.tensor([upstream.spells(i) for i in range(len(upstream.tokens))])
    ids = upstream.encode(text)
    windows = rng.permutation(len(ids) // WINDOW)[: -(-count // EACH)]
    for window in windows.tolist():
        read = ids[window * WINDOW : (window + 1) * WINDOW]
        with torch.inference_mode():
            logits = network(torch.tensor([read])).logits[0, :, : len(spelt)].double()
        rows = logits.masked_fill(~spelt, -torch.inf).log_softmax(-1)
        values, top = rows.topk(K)
        shown = [i for i in range(PROMPT, WINDOW) if read[i] in top[i - 1]]
        prompt = upstream.decode(read[:PROMPT])
        for i in sorted(rng.choice(shown, EACH, replace=False).tolist()):
            candidates = top[i - 1].tolist()
            context = Context(start, prompt, read[PROMPT:i])
            yield Position(context, candidates, values[i - 1].numpy(), candidates.index(read[i]))


def _offsets(found: dict[str, Rule], place: Position) -> dict[str, Floats]:
    chances = np.exp(place.logprobs)
    return {name: rule(place.context, place.candidates, chances) for name, rule in found.items()}


def _summary(places: Sequence[Position], deltas: Sequence[dict[str, Floats]]) -> Result:
    tables = {alpha: _table(places, deltas, alpha) for alpha in ALPHAS}
    result: Result = {
        "nll": {str(alpha): means(table) for alpha, table in tables.items()},
        "nll_minus": {str(alpha): differences(table) for alpha, table in tables.items()},
    }
    if "exact" in deltas[0]:
        result |= {"tv": means(_distances(places, deltas, _variation))}
        result |= {"log_ratio": means(_distances(places, deltas, _log_ratio))}
    return result


def _table(
    places: Sequence[Position], deltas: Sequence[dict[str, Floats]], alpha: float
) -> dict[str, Floats]:
    """−log of the true token's steered share of the top k."""
    return {
        rule: np.array(
            [
                -normalised(place.logprobs + alpha * delta[rule])[place.true]
                for place, delta in zip(places, deltas, strict=True)
            ]
        )
        for rule in deltas[0]
    }


def _distances(
    places: Sequence[Position], deltas: Sequence[dict[str, Floats]], of: Distance
) -> dict[str, Floats]:
    """How far from the exact rule, at α = 1."""
    pairs = list(zip(places, deltas, strict=True))
    return {
        rule: np.array([of(place.logprobs, delta[rule], delta["exact"]) for place, delta in pairs])
        for rule in deltas[0]
    }


def _variation(plain: Floats, delta: Floats, exact: Floats) -> float:
    """The total variation between two steered distributions."""
    left, right = (np.exp(normalised(plain + offset)) for offset in (delta, exact))
    return float(np.abs(left - right).sum() / 2)


def _log_ratio(plain: Floats, delta: Floats, exact: Floats) -> float:
    """|log P − log P exact|, averaged over the upstream's own distribution; nats."""
    left, right = (normalised(plain + offset) for offset in (delta, exact))
    return float(np.exp(normalised(plain)) @ np.abs(left - right))


def report(result: Result) -> str:
    """A Markdown table."""
    names = list(result["nll"]["1.0"])
    lines = [f"{result['hosted']}, {result['positions']} positions", "", *header("", *names)]
    for alpha in result["nll"]:
        lines.append(row(f"NLL, α = {alpha}", *_numbers(result["nll"][alpha], names)))
        for ours, others in result["nll_minus"][alpha].items():
            cells = (verdict(*others[n]) if n in others else "" for n in names)
            lines.append(row(f"minus {ours}'s", *cells))
    for key, title in (("tv", "TV to exact"), ("log_ratio", "nats to exact")):
        if key in result:
            lines.append(row(title, *_numbers(result[key], names)))
    return "\n".join(lines)


def _numbers(values: dict[str, float], names: Sequence[str]) -> list[str]:
    return [f"{values[name]:.3f}" for name in names]
