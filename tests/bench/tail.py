"""What becomes of the hidden tail: top-k steering against the same with the whole vocabulary.

A hosted model is read directly and cut to its top k, as an API would. The truth is Equation 1 over
its whole vocabulary, every offset by the bridge. Four ways to deal with what is hidden:

dropped   it has no mass at all
zero      it keeps Δ = 0; inside it the hosted model's own distribution, which no API shows
imputed   it is what the pair makes of it
expanded  the contenders a certificate names are scored exactly, the rest is imputed
"""

import argparse
import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from transformers import AutoModelForCausalLM, DynamicCache, PreTrainedModel

from adapter.candidates import Candidate, Position, make_position
from adapter.certificate import Certificate, Tail, certify, expanded
from adapter.demo.almanac import NEW_YEAR, world
from adapter.demo.stage import WEIGHTS
from adapter.pair.loading import LocalModel, load_model
from adapter.request import Sampling
from adapter.steering import Adapted, best, steer
from tests.bench.stats import header, row
from tokenizer_maps import (
    Clamp,
    Context,
    FastBridge,
    IdentityBridge,
    Kind,
    Masses,
    Offsets,
    Plan,
    Sets,
    TokenMap,
    Vocabulary,
    load_vocabulary,
)
from tokenizer_maps.steps import Rows, Whole

KS = (1, 5, 20)
ALPHAS = (1.0, 2.0)
WAYS = ("dropped", "zero", "imputed", "expanded")
HEADS = ("zero", "imputed")
LEAST = 1e-12  # nothing is given less, so that KL is finite where mass was dropped
NOISE = 0.3  # of the weights: makes another model of the same tokenizer
PROMPT = 160  # ids of a text that are read before its first place
WINDOW = 320  # ids of a text that are read at once
EACH = 10  # places of a window

Floats = NDArray[np.float64]
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line; the demo's models without paths."""
    parser.add_argument("--hosted", type=Path, help="model directory, or GGUF file")
    parser.add_argument("--expert", help="the tuned model's directory")
    parser.add_argument("--antiexpert", help="the untuned model's directory")
    parser.add_argument("--text", type=Path, help="a text none was tuned on")
    parser.add_argument("--positions", type=int, default=200, help="places of each case")


def run(args: argparse.Namespace) -> Result:
    """Every way at every place."""
    given = [args.hosted, args.expert, args.antiexpert, args.text]
    if any(given) and not all(given):
        raise SystemExit("--hosted, --expert, --antiexpert and --text go together")
    torch.manual_seed(0)
    cases = _given(args) if all(given) else _demo(args.positions)
    return {"cases": {name: _measure(case) for name, case in cases}}


# --- places


@dataclass(frozen=True, eq=False)
class Hosted:
    """A model whose whole rows can be read."""

    network: PreTrainedModel
    vocabulary: Vocabulary

    def rows(self, ids: Sequence[int]) -> Floats:
        """log p of every token of the vocabulary after each id; −inf for what is no token."""
        real = torch.tensor([kind is not Kind.NONE for kind in self.vocabulary.kinds])
        with torch.inference_mode():
            logits = self.network(torch.tensor([list(ids)])).logits[0, :, : len(real)].double()
        return logits.masked_fill(~real, -torch.inf).log_softmax(-1).numpy()


@dataclass(frozen=True, eq=False)
class Place:
    """One place in a text, and what the hosted model gives every token there."""

    context: Context
    upstream: Floats


@dataclass(frozen=True, eq=False)
class Case:
    """A hosted model, a pair, the bridge between them, and places in a text."""

    hosted: Hosted
    pair: "Pair"
    places: list[Place]


def _demo(count: int) -> Iterator[tuple[str, Case]]:
    """The almanac's models, on answers and on bulletins of the new year nobody was trained on."""
    names = [str(WEIGHTS / name) for name in ("expert", "antiexpert")]
    expert, anti = (load_model(name, "cpu", "auto") for name in names)
    network = AutoModelForCausalLM.from_pretrained(WEIGHTS, gguf_file="hosted.gguf").eval()
    hosted = Hosted(network, load_vocabulary(f"hf:{WEIGHTS / 'hosted-tokenizer'}"))
    near = Hosted(_nudged(load_model(names[1], "cpu", "auto").network), anti.vocabulary)
    for name, model in (("bridged", hosted), ("identity", near)):
        pair = Pair(model.vocabulary, expert, anti)
        start = anti.vocabulary.start
        texts = {
            "answers": [(q.prompt, q.answer) for q in world().questions_new()],
            "bulletins": [("", text) for text in world().bulletins(NEW_YEAR, 999)],
        }
        for text, parts in texts.items():
            places = [p for part in parts for p in _read(model, start, *part)]
            some = np.random.default_rng(0).permutation(len(places))[:count]
            yield f"{name}, {text}", Case(model, pair, [places[i] for i in sorted(some)])


def _nudged(network: PreTrainedModel) -> PreTrainedModel:
    """Noise on every weight: another model, of the same tokenizer."""
    with torch.no_grad():
        for weights in network.parameters():
            weights += NOISE * weights.std(correction=0) * torch.randn_like(weights)
    return network


def _read(hosted: Hosted, start: tuple[int, ...], prompt: str, rest: str) -> Iterator[Place]:
    """Every place of ``rest`` but the very first of a text, its end included."""
    vocabulary = hosted.vocabulary
    before, behind = vocabulary.encode(prompt.encode()), vocabulary.encode(rest.encode())
    rows = hosted.rows((*vocabulary.start, *before, *behind))
    for i in range(0 if before else 1, len(behind) + 1):
        context = Context(start, prompt.encode(), behind[:i])
        yield Place(context, rows[len(vocabulary.start) + len(before) + i - 1])


def _given(args: argparse.Namespace) -> Iterator[tuple[str, Case]]:
    """Models and a text of one's own, at places spread over it."""
    expert, anti = (load_model(name, "cpu", "auto") for name in (args.expert, args.antiexpert))
    if args.hosted.is_dir():
        model = load_model(str(args.hosted), "cpu", "auto")
        hosted = Hosted(model.network, model.vocabulary)
    else:
        folder, name = args.hosted.parent, args.hosted.name
        network = AutoModelForCausalLM.from_pretrained(folder, gguf_file=name).eval()
        hosted = Hosted(network, load_vocabulary(f"gguf:{args.hosted}"))
    pair = Pair(hosted.vocabulary, expert, anti)
    ids = hosted.vocabulary.encode(args.text.read_bytes())
    rng = np.random.default_rng(0)
    places = []
    for window in rng.permutation(len(ids) // WINDOW)[: -(-args.positions // EACH)].tolist():
        read = ids[window * WINDOW : (window + 1) * WINDOW]
        rows, prompt = hosted.rows(read), hosted.vocabulary.decode(read[:PROMPT])
        for i in sorted(rng.choice(np.arange(PROMPT, WINDOW), EACH, replace=False).tolist()):
            context = Context(anti.vocabulary.start, prompt, read[PROMPT:i])
            places.append(Place(context, rows[i - 1]))
    yield f"{args.hosted.name}, {args.text.name}", Case(hosted, pair, places)


# --- the pair


class Pair:
    """Two local models behind a bridge; they read one place at a time."""

    def __init__(self, upstream: Vocabulary, expert: LocalModel, anti: LocalModel) -> None:
        self._models = (expert, anti)
        self.identity = upstream.fingerprint == anti.vocabulary.fingerprint
        self.clamp = math.inf if self.identity else Clamp().offset
        self._bridge: IdentityBridge | FastBridge = IdentityBridge(anti.vocabulary)
        if not self.identity:
            self._bridge = FastBridge(TokenMap.build(upstream, anti.vocabulary), anti.end, Clamp())

    def read(self, context: Context) -> None:
        """Evaluate a place with both models."""
        self._plan = self._bridge.plan(context)
        wanted = self._bridge.surveyed(self._plan)
        self._rows = [_evaluated(model, self._plan, wanted) for model in self._models]

    def offsets(self, ids: Sequence[int]) -> Offsets:
        """Of candidates."""
        sets = self._bridge.sets(self._plan, ids)
        at = {node: n for n, node in enumerate(self._bridge.surveyed(self._plan))}
        found = [_masses(sets, at, rows) for rows in self._rows]
        return self._bridge.offsets(*(self._bridge.reading(self._plan, sets, m) for m in found))

    def whole(self) -> Whole:
        """Of everything."""
        return self._bridge.whole(*(self._bridge.survey(self._plan, r) for r in self._rows))


@torch.inference_mode()
def _evaluated(model: LocalModel, plan: Plan, wanted: Sequence[int]) -> Rows:
    """The trunk, then its branches in one pass in which each token sees its ancestors alone."""
    tree, network = plan.tree, model.network
    cache = DynamicCache(config=network.config)
    trunk, count = len(tree.trunk), len(tree.tokens)
    logits = network(torch.tensor([tree.trunk]), past_key_values=cache, use_cache=True).logits
    rows = logits[0, -1:]
    if count:
        lowest = torch.finfo(rows.dtype).min
        mask = torch.full((count, trunk + count), lowest, dtype=rows.dtype)
        mask[:, :trunk] = 0
        depths: list[int] = []
        for n, parent in enumerate(tree.parents):
            if parent >= 0:
                mask[n, trunk:] = mask[parent, trunk:]
            mask[n, trunk + n] = 0
            depths.append(depths[parent] + 1 if parent >= 0 else trunk)
        branches = network(
            torch.tensor([tree.tokens]),
            past_key_values=cache,
            attention_mask=mask[None, None],
            position_ids=torch.tensor([depths]),
            use_cache=True,
        ).logits
        rows = torch.cat([rows, branches[0]])
    logs = rows.double().masked_fill(model.blank, -torch.inf).log_softmax(-1).numpy()
    steps = zip(tree.parents, tree.tokens, strict=True)
    nodes = np.array([logs[parent + 1, token] for parent, token in steps])
    return Rows(logs[[node + 1 for node in wanted]], nodes)


def _masses(sets: Sets, at: dict[int, int], rows: Rows) -> Masses:
    """The sums a bridge asks for."""
    lengths = np.diff(sets.ptr)
    number = np.repeat(np.arange(len(lengths)), lengths)
    which = np.array([at[node] for node in sets.nodes.tolist()], np.int64)
    chances = np.exp(rows.rows[which[number], sets.ids])
    with np.errstate(divide="ignore"):
        return Masses(np.log(np.bincount(number, chances, len(lengths))), rows.nodes)


# --- measuring


@dataclass(frozen=True, eq=False)
class View:
    """One place as the service sees it at some k and α, and the truth."""

    case: Case
    whole: Whole
    hideable: NDArray[np.bool_]
    upstream: Floats
    truth: Floats
    alpha: float

    def candidate(self, token: int, logprob: float) -> Candidate:
        """A token by its id."""
        return Candidate(self.case.hosted.vocabulary.tokens[token], logprob, token)

    def top(self, k: int) -> Position:
        """What an upstream shows."""
        order = np.argsort(-self.upstream, kind="stable")[:k].tolist()
        return make_position([self.candidate(i, float(self.upstream[i])) for i in order], None)

    def steered(self, position: Position, whole: Whole | None) -> Adapted:
        """By the candidates' own offsets."""
        offsets = self.case.pair.offsets([c.id or 0 for c in position.candidates])
        return steer(position, offsets.delta, self.alpha, whole, self.hideable)

    def certificates(self, adapted: Adapted) -> list[Certificate]:
        """Greedy, and at temperature 1."""
        margin = 1e-6 * len(adapted.position.candidates)
        tail = Tail(self.alpha, self.whole, self.hideable, self.case.pair.clamp, margin)
        draws = (Sampling(temperature=0), Sampling())
        return [certify(adapted, adapted.scores, draw, {}, tail) for draw in draws]

    def grown(self, position: Position, certificate: Certificate) -> Position:
        """With the contenders scored exactly."""
        exact = {v: float(self.upstream[v]) for v in certificate.contenders}
        return expanded(position, exact, self.candidate)


def _measure(case: Case) -> Result:
    """Means over the places, by α and k."""
    found: dict[tuple[float, int], list[dict[str, float]]] = {}
    kinds = case.hosted.vocabulary.kinds
    hideable = np.array([kind is not Kind.NONE for kind in kinds])
    everything = list(range(len(kinds)))
    for place in case.places:
        case.pair.read(place.context)
        whole, delta = case.pair.whole(), case.pair.offsets(everything).delta
        for alpha in ALPHAS:
            scores = place.upstream + alpha * delta
            truth = scores - np.logaddexp.reduce(scores[hideable])
            view = View(case, whole, hideable, place.upstream, truth, alpha)
            for k in KS:
                found.setdefault((alpha, k), []).append(_compare(view, k))
    return {
        "places": len(case.places),
        "cells": [
            {"alpha": alpha, "k": k}
            | {key: float(np.mean([s[key] for s in some])) for key in some[0]}
            for (alpha, k), some in found.items()
        ],
    }


def _compare(view: View, k: int) -> dict[str, float]:
    """One place, one α, one k: how far each way is from the truth, and what is certified."""
    position = view.top(k)
    plain, imputed = view.steered(position, None), view.steered(position, view.whole)
    greedy, sampled = view.certificates(imputed)
    grown = view.steered(view.grown(position, greedy), view.whole)
    larger = view.steered(view.grown(position, sampled), view.whole)
    ways = {
        "dropped": _spread(view, plain, False),
        "zero": _spread(view, plain, True),
        "imputed": _spread(view, imputed, False),
        "expanded": _spread(view, grown, False),
    }
    first = int(np.argmax(view.truth))
    choices = dict(zip(WAYS, (plain, plain, imputed, grown), strict=True))
    agree = {way: int(a.ids[best(a, a.scores)]) == first for way, a in choices.items()}
    shown = [c.id or 0 for c in position.candidates]
    shift = np.median(imputed.offsets[:k] - view.whole.delta[shown])
    return (
        {f"kl {way}": _kl(view.truth, logs) for way, logs in ways.items()}
        | {f"head {way}": _kl(_head(view.truth, shown), _head(ways[way], shown)) for way in HEADS}
        | {f"same {way}": float(same) for way, same in agree.items()}
        | {
            "certified": float(greedy.certified),
            "certified, expanded": float(view.certificates(grown)[0].certified),
            "certified draws": float(sampled.certified),
            "certified draws, expanded": float(view.certificates(larger)[1].certified),
            "wrongly certified": float(greedy.certified and not agree["imputed"]),
            "scored": float(len(greedy.contenders)),
            "shift": float(abs(shift)),
            "hidden": position.hidden,
        }
    )


def _spread(view: View, adapted: Adapted, tail: bool) -> Floats:
    """A way's distribution over the vocabulary; with ``tail`` the hidden keep what they had."""
    logs = view.upstream.copy() if tail else np.full_like(view.upstream, -math.inf)
    logs[adapted.ids] = adapted.scores
    logs -= np.logaddexp.reduce(logs[view.hideable])
    return np.maximum(logs, math.log(LEAST))


def _head(logs: Floats, shown: Sequence[int]) -> Floats:
    """Of the candidates, and of all else in one."""
    rest = np.delete(logs, shown)
    return np.append(logs[shown], np.logaddexp.reduce(rest[rest > -math.inf], initial=-math.inf))


def _kl(truth: Floats, logs: Floats) -> float:
    some = truth > -math.inf
    return float(np.exp(truth[some]) @ (truth[some] - logs[some]))


def report(result: Result) -> str:
    """Markdown tables."""
    lines = []
    for name, case in result["cases"].items():
        titles = (
            "α",
            "k",
            "h",
            *(f"KL {way}" for way in WAYS),
            *(f"head {way}" for way in HEADS),
            *(f"same {way}" for way in WAYS[1:]),
        )
        lines += [f"{name}, {case['places']} places", "", *header(*titles)]
        for cell in case["cells"]:
            names = (*(f"kl {way}" for way in WAYS), *(f"head {way}" for way in HEADS))
            kls = (f"{cell[name]:.3f}" for name in names)
            same = (f"{cell[f'same {way}']:.2f}" for way in WAYS[1:])
            lines.append(row(cell["alpha"], cell["k"], f"{cell['hidden']:.3f}", *kls, *same))
        shares = (
            "certified",
            "certified, expanded",
            "certified draws",
            "certified draws, expanded",
        )
        lines += ["", *header("α", "k", *shares, "scored", "wrongly certified", "shift")]
        for cell in case["cells"]:
            known = (f"{cell[share]:.0%}" for share in (*shares,))
            more = (
                f"{cell['scored']:.1f}",
                f"{cell['wrongly certified']:.3f}",
                f"{cell['shift']:.4f}",
            )
            lines.append(row(cell["alpha"], cell["k"], *known, *more))
        lines.append("")
    return "\n".join(lines)
