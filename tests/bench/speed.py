"""How long a bridge takes, beside the forwards."""

import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapter.pair.loading import LocalModel
from adapter.pair.network import Network
from adapter.pair.rows import masses
from adapter.pair.text import Text
from tests.bench import corpora
from tests.bench.ngrams import Ngrams
from tests.bench.stats import header, row
from tests.support import vocabularies
from tokenizer_maps import (
    Bridge,
    Context,
    ExactBridge,
    FastBridge,
    IdentityBridge,
    Masses,
    Plan,
    Sets,
    TokenMap,
    Vocabulary,
)
from tokenizer_maps.canonical import Encoder
from tokenizer_maps.exact import ALWAYS

T = TypeVar("T")
PAIR = ("o200k", "Llama-3")
K = 20
PROMPT = 512  # upstream tokens
STEPS = 150
GOALS = {
    "fast_ms": 2,
    "exact_ms": "",
    "identity_ms": 0.2,
    "reencode_ms": 0.2,
    "build_s": 5,
    "load_ms": 50,
}


def measure() -> dict[str, Any]:
    """The numbers of one position, in running text, and of one map, of PAIR; medians."""
    skipped = [reason for name in PAIR if (reason := vocabularies.missing(name))]
    if skipped:
        return {"skipped": skipped}
    upstream, pair = map(vocabularies.real, PAIR)
    started = time.perf_counter()
    tables = TokenMap.build(upstream, pair)
    build = time.perf_counter() - started
    ends = frozenset[int]()
    stages = {
        "fast": _position(FastBridge(tables, ends), upstream, pair),
        "exact": _position(ExactBridge(tables, ends, above=ALWAYS), upstream, pair),
        "identity": _position(IdentityBridge(pair), pair, pair),
    }
    return {f"{name}_ms": parts["all"] for name, parts in stages.items()} | {
        "stages_ms": stages,
        "reencode_ms": _reencode(upstream, pair),
        "build_s": round(build, 3),
        "load_ms": _load(tables),
    }


def report(result: dict[str, Any]) -> str:
    """Markdown tables."""
    lines = header("→".join(PAIR), "median", "goal")
    lines += [row(key, result[key], goal) for key, goal in GOALS.items()]
    stages = result["stages_ms"]
    lines += ["", *header("ms", *next(iter(stages.values())))]
    return "\n".join([*lines, *(row(name, *parts.values()) for name, parts in stages.items())])


def _position(bridge: Bridge, upstream: Vocabulary, pair: Vocabulary) -> dict[str, float]:
    """Milliseconds of each step, and of all of them, at a place in running text; medians."""
    text = corpora.markdown()
    ids = upstream.encode(text.held_out.encode())
    model = Ngrams(upstream, upstream.encode(text.train[:300_000].encode()))
    networks = [Network(model.network, model.blank) for model in (_tiny(pair), _tiny(pair))]
    texts = [(network, network.text()) for network in networks]
    prompt = upstream.decode(ids[:PROMPT])
    clocks = []
    for n in range(STEPS):
        top = np.argpartition(-model(ids[: PROMPT + n]), K)[:K].tolist()
        clock = _Clock()
        _step(bridge, texts, Context((), prompt, ids[PROMPT : PROMPT + n]), top, clock)
        clocks.append(clock.times | {"all": sum(clock.times.values())})
    return {
        name: round(float(np.median([times[name] for times in clocks])) * 1e3, 3)
        for name in clocks[0]
    }


def _step(
    bridge: Bridge,
    texts: list[tuple[Network, Text]],
    context: Context,
    top: list[int],
    clock: "_Clock",
) -> None:
    """What the service does at one place; the forwards are not timed."""

    def ask(plan: Plan) -> tuple[Sets, list[Masses]]:
        for network, text in texts:
            network.evaluate(text, plan.tree)
        sets = clock("sets", bridge.sets, plan, top)
        return sets, [clock("masses", _masses, text, sets, plan) for _, text in texts]

    plan: Plan = clock("plan", bridge.plan, context)
    sets, found = ask(plan)
    deeper = clock("deeper", bridge.deeper, plan, sets, found)
    if deeper is not None:
        plan = deeper
        sets, found = ask(plan)
    readings = [clock("offsets", bridge.reading, plan, sets, one) for one in found]
    clock("offsets", bridge.offsets, *readings)


def _masses(text: Text, sets: Sets, plan: Plan) -> Masses:
    nodes = np.arange(-1, len(plan.tree.tokens))
    return masses(text.found(), [(sets, text.line(nodes), plan.tree)])[0]


class _Clock:
    """Adds up the time of calls by name."""

    def __init__(self) -> None:
        self.times: dict[str, float] = {}

    def __call__(self, name: str, call: Callable[..., T], *arguments: object) -> T:
        started = time.perf_counter()
        result = call(*arguments)
        self.times[name] = self.times.get(name, 0.0) + time.perf_counter() - started
        return result


def _tiny(pair: Vocabulary) -> LocalModel:
    """A random model with the pair's whole vocabulary."""
    torch.manual_seed(0)
    size = len(pair.tokens)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=16,
        intermediate_size=16,
        num_hidden_layers=1,
        num_attention_heads=2,
        max_position_embeddings=4096,
    )
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    return LocalModel("tiny", network, pair, frozenset(), torch.zeros(size, dtype=torch.bool), 4096)


def _reencode(upstream: Vocabulary, pair: Vocabulary) -> float:
    """Milliseconds to encode a text that has grown by one upstream token; the median."""
    ids = upstream.encode(corpora.markdown().held_out.encode())
    encoder, times = Encoder(pair), []
    for n in range(STEPS):
        text = upstream.decode(ids[: PROMPT + n])
        started = time.perf_counter()
        encoder.encode(text)
        times.append(time.perf_counter() - started)
    return round(float(np.median(times)) * 1e3, 3)


def _load(tables: TokenMap) -> float:
    """Milliseconds to open a map file; the median."""
    times = []
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "a.tkmap"
        tables.save(path)
        for _ in range(9):
            started = time.perf_counter()
            TokenMap.load(path, tables.upstream, tables.pair)
            times.append(time.perf_counter() - started)
    return round(float(np.median(times)) * 1e3, 3)
