"""Given: texts scored on real models by every way of steering, offline, from full logits.

The hosted model is read directly and cut to its top k, as an API would; the token that is scored is
always known, as from an API that echoes, unless a way says otherwise. With a pair of the same token
ids:

whole              Equation 1 over the whole vocabulary: what every other way would like to be
zero               only the top k are steered, all that is hidden keeps Δ = 0, the scored token too
zero, known        and the scored token has its own Δ wherever it stands
imputed            the service: as before, and the hidden tail is what the pair makes of it
imputed, guessed   the same, but a scored token that is hidden gets what the pair makes of it

With a pair of another tokenizer: the scored token known and Δ = 0 in the tail, by each rule of
``rules``; and for those of the bridge also with the imputed tail.
"""

import argparse
import asyncio
import tempfile
from collections import Counter
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import torch
from numpy.typing import NDArray

from adapter.candidates import Candidate, Position, make_position
from adapter.certificate import expanded
from adapter.cli.progress import progress
from adapter.evaluation.asking import ask
from adapter.evaluation.evaluate import items_of
from adapter.evaluation.items import Item
from adapter.evaluation.measured import ANTIEXPERT, HOSTED, compared, measured
from adapter.evaluation.outcomes import Outcome
from adapter.evaluation.readers.records import contents
from adapter.evaluation.replies import Reply, Scored, Strength
from adapter.evaluation.steered import behind
from adapter.evaluation.suite import Task
from adapter.pair.loading import LocalModel, load_model
from adapter.pair.lora import attach, is_adapter
from adapter.pair.network import Network
from adapter.steering import log_sum, steer
from adapter.templates import segments_of, split
from tests.bench.reading import Pair, Reading
from tests.bench.rules import Bridged, Rule, rules
from tests.bench.stats import header, row
from tokenizer_maps import (
    Clamp,
    Context,
    FastBridge,
    IdentityBridge,
    Kind,
    Plan,
    TokenMap,
    Tree,
)
from tokenizer_maps.steps import Whole

RULES = ("fast", "auto", "string", "first_subtoken")
WAYS = ("zero", "zero, known", "imputed", "imputed, guessed")
PRUNE = 1e-4  # of the rule ``prefix``
WINDOW = 512  # tokens of a text that are read at once, as `adapter evaluate` does by default
AT_ONCE = 64  # places whose rows are kept at once

Floats = NDArray[np.float64]
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--hosted", required=True, help="the hosted model's directory")
    parser.add_argument("--pair", required=True, help="the untuned model's directory")
    parser.add_argument("--expert", required=True, help="the tuned one's, or its LoRA adapter's")
    asked = parser.add_mutually_exclusive_group(required=True)
    asked.add_argument("--questions", type=Path, help="RealTimeQA as JSONL")
    asked.add_argument("--text", type=Path)
    parser.add_argument("--limit", type=int, default=250, help="questions")
    parser.add_argument("--tokens", type=int, default=5000, help="of the text's beginning")
    parser.add_argument("--k", type=int, nargs="+", help="5 20 100; 20 for another tokenizer")
    parser.add_argument("--alpha", type=float, nargs="+", default=[0.5, 1.0, 2.0, 3.0])
    parser.add_argument("--rules", nargs="+", default=RULES, help="for another tokenizer")
    parser.add_argument("--dtype", default="bfloat16", help="of all models")


def run(args: argparse.Namespace) -> Result:
    """Every way on every question, or on every piece of the text."""
    with progress("loading models") as advance:
        system = _system(args)
        task, items = _asked(args, system)
        outcomes = []
        for done, item in enumerate(items):
            advance(done, len(items), task.name, None)
            outcomes += asyncio.run(ask(system, task, item, system.strengths))
    return {
        "hosted": Path(args.hosted).name,
        "expert": Path(args.expert).name,
        "kind": task.kind,
        "items": len(items),
        "tokens": system.tokens,
        "outside": {str(k): system.outside[k] / system.tokens for k in system.ks},
        "ways": _ways(task, outcomes, system.strengths),
    }


def _system(args: argparse.Namespace) -> "Offline":
    """The models; an expert may be a LoRA adapter of the pair."""
    hosted, anti = (load_model(name, "cpu", args.dtype) for name in (args.hosted, args.pair))
    if is_adapter(Path(args.expert)):
        mixed = attach(anti.network, anti.vocabulary, {"expert": Path(args.expert)})
        anti = replace(anti, network=mixed)
        expert = replace(anti, adapter="expert")
    else:
        expert = load_model(args.expert, "cpu", args.dtype)
    return Offline(hosted, expert, anti, args.k, args.alpha, args.rules)


def _asked(args: argparse.Namespace, system: "Offline") -> tuple[Task, list[Item]]:
    """The items that `adapter evaluate` asks."""
    if args.questions:
        named = {"name": args.questions.name, "kind": "answers", "reader": "realtimeqa"}
        task = Task(**named, data=str(args.questions), limit=args.limit, normalise="mean")
        return task, items_of(task, system.fits, None)
    words = system.hosted.vocabulary
    ids = words.encode(contents(args.text).encode())[: args.tokens]
    with tempfile.TemporaryDirectory() as folder:
        start = Path(folder) / args.text.name
        start.write_text(words.decode(ids).decode("utf-8", "ignore"), "utf-8")
        task = Task(name=start.name, kind="text", reader="text", data=str(start), window=WINDOW)
        return task, items_of(task, system.fits, None)


# --- the ways


class Way(NamedTuple):
    """What a way makes of a place: candidates, their offsets, the tail if it is imputed."""

    position: Position
    delta: Floats
    whole: Whole | None


class Place(NamedTuple):
    """A token that is given: the ids before it, and how the pair reads them."""

    before: tuple[int, ...]
    token: int
    context: Context
    plan: Plan


class View(NamedTuple):
    """A token that is given, what the hosted model gives all tokens there, and the ways."""

    token: int
    upstream: Floats
    whole: Whole | None  # with the same token ids
    ways: list[Way]


class Offline:
    """All ways as one system of `adapter evaluate`; counts what it scored."""

    at_once = 1

    def __init__(
        self,
        hosted: LocalModel,
        expert: LocalModel,
        anti: LocalModel,
        ks: Sequence[int] | None,
        alphas: Sequence[float],
        names: Sequence[str],
    ) -> None:
        self.hosted = hosted
        self.tokens, self.outside = 0, Counter[int]()
        self._alphas = alphas
        self._words, self._pair_words = hosted.vocabulary, anti.vocabulary
        self._size = len(self._words.tokens)
        self._hideable = np.array([kind is not Kind.NONE for kind in self._words.kinds])
        self._network = Reading(Network(hosted.network, hosted.blank), hosted.adapter)
        self._pair = Pair(expert, anti)
        self._same = self._words.fingerprint == self._pair_words.fingerprint
        self._bridge: IdentityBridge | FastBridge = IdentityBridge(self._pair_words)
        self._rules: dict[str, Rule] = {}
        plain, ways = [HOSTED, "expert", ANTIEXPERT], list(WAYS)
        if not self._same:
            tables = TokenMap.build(self._words, self._pair_words)
            self._bridge = FastBridge(tables, expert.end | anti.end, Clamp())
            known = rules(self._bridge, self._pair, PRUNE)
            self._rules = {name: known[name] for name in names}
            ours = [name for name, rule in self._rules.items() if isinstance(rule, Bridged)]
            plain, ways = [HOSTED], [*names, *(f"{name}, imputed" for name in ours)]
        self.ks = ks or ((5, 20, 100) if self._same else (20,))
        steered = ["whole"] * self._same + [f"top {k}: {way}" for k in self.ks for way in ways]
        self.strengths = (
            *map(Strength, plain),
            *(Strength(way, alpha) for way in steered for alpha in alphas),
        )

    def fits(self, text: str, window: int) -> bool:
        """Whether hosted model and pair can read a text of so many tokens at once."""
        both = (self._words, self._pair_words)
        return max(len(one.start) + len(one.encode(text.encode())) for one in both) <= window

    async def scored(
        self, prompt: str, answers: Sequence[str], wanted: Sequence[Strength]
    ) -> list[Reply]:
        """Each answer's own tokens, at all strengths whatever is wanted."""
        places, sums, sizes = list[tuple[int, Place]](), [], []
        for number, answer in enumerate(answers):
            ids = (*self._words.start, *self._words.encode((prompt + answer).encode()))
            start = max(1, behind(ids, answer, self._words))
            places += ((number, self._place(ids, start, at)) for at in range(start, len(ids)))
            sizes.append((len(ids) - start, len(self._words.decode(ids[start:]))))
            sums.append(np.zeros(len(self.strengths)))
        for at in range(0, len(places), AT_ONCE):
            numbers, some = zip(*places[at : at + AT_ONCE], strict=True)
            with ThreadPoolExecutor(torch.get_num_threads()) as threads:
                found = threads.map(self._chances, self._views(some))
                for number, chances in zip(numbers, found, strict=True):
                    sums[number] += chances
        self.tokens += len(places)
        return [
            Reply(tuple(Scored(float(s[i]), *size) for s, size in zip(sums, sizes, strict=True)))
            for i in range(len(wanted))
        ]

    def _place(self, ids: tuple[int, ...], start: int, at: int) -> Place:
        if self._same:
            context = Context(ids[:start], b"", ids[start:at])
        else:
            segments = segments_of(ids[:start], self._words)
            context = Context(*split(segments, self._pair_words), ids[start:at])
        return Place(ids[:at], ids[at], context, self._bridge.plan(context))

    def _views(self, places: Sequence[Place]) -> Iterator[View]:
        """Everything that a model is needed for."""
        self._network.read([Tree(place.before, (), ()) for place in places])
        self._pair.read([place.plan.tree for place in places])
        for place in places:
            tree = Tree(place.before, (), ())
            upstream = self._network.rows(tree).rows[0, : self._size]
            whole = self._pair.whole(self._bridge, place.plan)
            ways = [way for k in self.ks for way in self._ways(place, upstream, whole, k)]
            yield View(place.token, upstream, whole if self._same else None, ways)

    def _ways(self, place: Place, upstream: Floats, whole: Whole, k: int) -> Iterator[Way]:
        """The ways at one k, in the order of their names."""
        token = self._candidate(place.token, float(upstream[place.token]))
        top = np.arange(self._size)
        if k < self._size:
            top = np.argpartition(-upstream, k)[:k]
        shown = make_position(
            [self._candidate(i, float(upstream[i])) for i in top.tolist()],
            token,
            int(self._hideable.sum()),
        )
        known = expanded(shown, {place.token: token.logprob}, lambda *_: token)
        self.outside[k] += len(known.candidates) - len(shown.candidates)
        if self._same:
            own, joined = whole.delta[_ids(shown)], whole.delta[_ids(known)]
            zero, imputed = Way(known, joined, None), Way(known, joined, whole)
            hidden = len(known.candidates) > len(shown.candidates)
            yield from (Way(shown, own, None) if hidden else zero, zero)
            yield from (imputed, Way(shown, own, whole) if hidden else imputed)
            return
        ids, chances = _ids(known), np.exp([c.logprob for c in known.candidates])
        offsets = {name: rule(place.context, ids, chances) for name, rule in self._rules.items()}
        yield from (Way(known, delta, None) for delta in offsets.values())
        for name, rule in self._rules.items():
            if isinstance(rule, Bridged):
                yield Way(known, offsets[name], whole)

    def _candidate(self, token: int, logprob: float) -> Candidate:
        return Candidate(self._words.tokens[token], logprob, token)

    def _chances(self, view: View) -> Floats:
        """The log-probability of the token at every strength."""
        own = float(view.upstream[view.token])
        found = [own]
        if view.whole is not None:
            prior, delta = view.whole.prior, view.whole.delta
            found += [prior[view.token] + delta[view.token], prior[view.token]]
            for alpha in self._alphas:
                scores = view.upstream + alpha * delta
                found.append(scores[view.token] - log_sum(scores))
        done: dict[int, list[float]] = {}
        for way in view.ways:
            if id(way) not in done:
                done[id(way)] = [self._steered(view, way, own, alpha) for alpha in self._alphas]
            found += done[id(way)]
        return np.array(found)

    def _steered(self, view: View, way: Way, own: float, alpha: float) -> float:
        """By one way; a token that is no entry is hidden, and keeps what it had."""
        adapted = steer(way.position, way.delta, alpha, way.whole, self._hideable)
        at = np.flatnonzero(adapted.ids == view.token)
        if len(at):
            return float(adapted.logprobs[at[0]])
        return own - float(adapted.scores[0] - adapted.logprobs[0])


def _ids(position: Position) -> list[int]:
    return [-1 if c.id is None else c.id for c in position.candidates]


# --- what came of it


def _ways(
    task: Task, outcomes: Sequence[Outcome], strengths: Sequence[Strength]
) -> list[dict[str, Any]]:
    """One entry a way and strength, in their order: its result, beside the hosted model's."""
    systems = measured(task.kind, outcomes, None)
    found = {}
    for one, beside in zip(systems, compared(task.kind, systems), strict=True):
        minus, interval = beside.difference, one.interval
        found[one.system, one.alphas] = {
            "way": one.system,
            "alpha": one.alphas[0] if one.alphas else None,
            "result": one.result,
            "interval": None if interval is None else [interval.low, interval.high],
            "minus": None if minus is None else [minus.value, minus.low, minus.high],
            "p": beside.p,
        }
    return [found[s.system, () if s.alpha is None else (s.alpha,)] for s in strengths]


def report(result: Result) -> str:
    """A Markdown table: ways by strengths."""
    text = result["kind"] == "text"
    measure = "bits per byte, − hosted" if text else "accuracy, McNemar's p against hosted"
    shares = ", ".join(f"{share:.1%} outside the top {k}" for k, share in result["outside"].items())
    ways = result["ways"]
    alphas = list(dict.fromkeys(one["alpha"] for one in ways if one["alpha"] is not None))
    lines = [
        f"{result['hosted']}, {result['expert']}: {measure}; {result['items']} items, "
        f"{result['tokens']} tokens, of which {shares}",
        "",
        *(f"- {one['way']}: {_cell(one, text)}" for one in ways if one["alpha"] is None),
        "",
        *header("", *(f"α = {alpha:g}" for alpha in alphas)),
    ]
    for name in dict.fromkeys(one["way"] for one in ways if one["alpha"] is not None):
        lines.append(row(name, *(_cell(one, text) for one in ways if one["way"] == name)))
    return "\n".join(lines)


def _cell(one: dict[str, Any], text: bool) -> str:
    if text:
        minus = one["minus"]
        beside = "" if minus is None else f" ({minus[0]:+.3f} [{minus[1]:+.3f}, {minus[2]:+.3f}])"
        return f"{one['result']:.3f}{beside}"
    low, high = one["interval"]
    p = "" if one["p"] is None else f", p {one['p']:.2g}"
    return f"{one['result']:.1%} [{low:.1%}, {high:.1%}]{p}"
