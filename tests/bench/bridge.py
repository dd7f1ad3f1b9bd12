"""The bridge across tokenizers: how fast it is, and how well it steers against other rules.

Steering: four-gram models. The upstream has read A, its gold twin A and B; so have the pair's
anti-expert and expert, in their own tokens. How far is the steered upstream from its twin?
"""

import argparse
import subprocess
from collections.abc import Iterator, Mapping, Sequence
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tests.bench import corpora, speed
from tests.bench.ngrams import MEMORY, NgramPair, Ngrams
from tests.bench.rules import Rule, rules
from tests.bench.stats import OURS, Table, differences, header, means, normalised, row, verdict
from tests.support import vocabularies
from tokenizer_maps import Clamp, Context, FastBridge, TokenMap, Vocabulary

PAIRS = (
    ("o200k", "Llama-3"),
    ("cl100k", "Llama-3"),
    ("cl100k", "Qwen2"),
    ("o200k", "Qwen2"),
    ("o200k", "r50k"),
)
K = 20
ESCALATED = "escalated"
WHOLE = "all"
RIVALS = ("prefix", "string", "first_subtoken")
PRUNE = 1e-6
CONTEXT = 64  # upstream tokens of context that a rule sees as generated, and again as prompt

Floats = NDArray[np.float64]
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--positions", type=int, default=200, help="per vocabulary pair and text")
    parser.add_argument("--cache", type=Path, default=Path(".venv/corpora"), help="fetched text")
    parser.add_argument("--clamp", type=float, default=Clamp().offset, help="of text, in nats")
    parser.add_argument(
        "--pair-memory", type=int, default=MEMORY, help="tokens that the pair's models remember"
    )
    parser.add_argument("--only", choices=["speed", "kl"], help="one half of it")


def run(args: argparse.Namespace) -> Result:
    """Both halves, or the one asked for."""
    result: Result = {}
    if args.only != "kl":
        result |= speed.measure()
    if args.only != "speed":
        result |= steering(args)
    return result


def steering(args: argparse.Namespace) -> Result:
    """KL(gold ‖ steered) in nats over the upstream's top k, by vocabulary pair, text and rule."""
    possible, skipped = _possible()
    base = corpora.markdown()
    tunings = {"python": corpora.python(), "english": corpora.english()}
    try:
        tunings["multilingual"] = corpora.multilingual(args.cache)
    except subprocess.CalledProcessError as error:
        skipped.append(f"multilingual text: {error.stderr.decode().strip()[-200:]}")
    tables = {
        (upstream, pair): {
            name: _measured(
                _world(upstream, base, text),
                _world(pair, base, text, args.pair_memory),
                text,
                args,
            )
            for name, text in tunings.items()
        }
        for upstream, pair in possible
    }
    sources = {"base": base.source} | {name: text.source for name, text in tunings.items()}
    named = {f"{upstream}→{pair}": table for (upstream, pair), table in tables.items()}
    return {"sources": sources, "skipped": skipped} | _summary(named)


def _possible() -> tuple[list[tuple[str, str]], list[str]]:
    """The vocabulary pairs that are here, and why the others are not."""
    why = {name: vocabularies.missing(name) for pair in PAIRS for name in pair}
    possible = [pair for pair in PAIRS if not any(why[name] for name in pair)]
    return possible, [reason for reason in why.values() if reason]


class World:
    """One vocabulary, and models of its tokens trained on A and on A + B."""

    def __init__(
        self, name: str, base: corpora.Corpus, tuning: corpora.Corpus, memory: int = MEMORY
    ) -> None:
        self.vocabulary: Vocabulary = vocabularies.real(name)
        read = [self.vocabulary.encode(text.train.encode()) for text in (base, tuning)]
        self.untuned = Ngrams(self.vocabulary, read[0], memory)
        self.tuned = Ngrams(self.vocabulary, read[0] + read[1], memory)


@lru_cache(9)
def _world(name: str, base: corpora.Corpus, tuning: corpora.Corpus, memory: int = MEMORY) -> World:
    return World(name, base, tuning, memory)


@lru_cache(1)
def _map(upstream: Vocabulary, pair: Vocabulary) -> TokenMap:
    return TokenMap.build(upstream, pair)


def _measured(
    upstream: World, pair: World, text: corpora.Corpus, args: argparse.Namespace
) -> Table:
    """One KL a position and rule; and whether auto took a second pass there."""
    fast = FastBridge(_map(upstream.vocabulary, pair.vocabulary), frozenset(), Clamp(args.clamp))
    found = rules(fast, NgramPair(pair.tuned, pair.untuned), PRUNE)
    ids = upstream.vocabulary.encode(text.held_out.encode())
    rows = [
        _position(upstream, found, ids[:at], candidates)
        for at, candidates in _positions(upstream.untuned, ids, args.positions)
    ]
    kl = {rule: np.array([row[rule] for row in rows]) for rule in found}
    return kl | {ESCALATED: np.array(found["auto"].deepened, float)}


def _positions(
    model: Ngrams, ids: tuple[int, ...], count: int
) -> Iterator[tuple[int, NDArray[np.int64]]]:
    """Places whose true token is among the top k, and the top k."""
    order = np.random.default_rng(0).permutation(np.arange(2 * CONTEXT, len(ids)))
    for at in order.tolist():
        if count == 0:
            return
        top = np.argpartition(-model(ids[:at]), K)[:K]
        if ids[at] in top:
            count -= 1
            yield at, np.sort(top)


def _position(
    upstream: World, found: Mapping[str, Rule], ids: tuple[int, ...], candidates: NDArray[np.int64]
) -> dict[str, float]:
    prompt = upstream.vocabulary.decode(ids[-2 * CONTEXT : -CONTEXT])
    context = Context((), prompt, ids[-CONTEXT:])
    gold = np.log(upstream.tuned(ids)[candidates])
    plain = np.log(upstream.untuned(ids)[candidates])
    offsets = {
        name: rule(context, candidates.tolist(), np.exp(plain)) for name, rule in found.items()
    }
    return {name: _kl(gold, plain + offset) for name, offset in offsets.items()}


def _kl(left: Floats, right: Floats) -> float:
    """KL between two rows of scores, in nats."""
    left, right = normalised(left), normalised(right)
    return float(np.sum(np.exp(left) * (left - right)))


def _summary(tables: Mapping[str, Mapping[str, Table]]) -> Result:
    """Means, and 95 % intervals of the paired differences to our own rules."""
    texts = {
        pair: dict(table) | {WHOLE: _joined(list(table.values()))} for pair, table in tables.items()
    }
    kl = {p: {t: means(_without(table)) for t, table in ts.items()} for p, ts in texts.items()}
    return {
        "kl": {pair: found[WHOLE] for pair, found in kl.items()},
        "kl_by_text": kl,
        "kl_minus": {
            p: {t: differences(_without(table)) for t, table in ts.items()}
            for p, ts in texts.items()
        },
        "escalated": {
            p: {t: float(table[ESCALATED].mean()) for t, table in ts.items()}
            for p, ts in texts.items()
        },
        "positions": {pair: len(ts[WHOLE]["fast"]) for pair, ts in texts.items()},
    }


def _joined(tables: Sequence[Table]) -> Table:
    return {rule: np.concatenate([table[rule] for table in tables]) for rule in tables[0]}


def _without(table: Table) -> Table:
    return {rule: values for rule, values in table.items() if rule != ESCALATED}


def report(result: Result) -> str:
    """Markdown tables."""
    lines = []
    if "fast_ms" in result:
        lines += [speed.report(result), ""]
    lines += [f"skipped: {reason}" for reason in result.get("skipped", [])]
    if not result.get("kl"):
        return "\n".join(lines)
    for name, source in result["sources"].items():
        lines.append(f"- {name}: {source}")
    names = list(next(iter(result["kl"].values())))
    lines += ["", *header("pair", "text", *names, "auto escalates")]
    for pair, texts in result["kl_by_text"].items():
        for text, kl in texts.items():
            share = f"{result['escalated'][pair][text]:.0%}"
            lines.append(row(pair, text, *(f"{kl[name]:.3f}" for name in names), share))
    return "\n".join([*lines, "", *_claims(result)])


def _claims(result: Result) -> Iterator[str]:
    """What of the claim holds, rule by rule."""
    yield "Rival − ours, with 95 % intervals: **ours is better**, even, or _the rival is_."
    yield ""
    yield from header("pair", "text", *(f"{rival} − {our}" for our in OURS for rival in RIVALS))
    for pair, texts in result["kl_minus"].items():
        for text, found in texts.items():
            cells = (verdict(*found[our][rival]) for our in OURS for rival in RIVALS)
            yield row(pair, text, *cells)
