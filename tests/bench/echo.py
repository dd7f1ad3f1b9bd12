"""Echo: what scoring a given text as steered takes beside an upstream that scores it in one call.

Two random Llamas of two narrow layers read Llama-3's 128k vocabulary, so that what is measured is
what a vocabulary costs. The upstream shares it, shows 20 candidates a place and answers at once.
"""

import argparse
import asyncio
import math
import time
from typing import Any

import numpy as np
import torch
from transformers import LlamaConfig, LlamaForCausalLM

from adapter.budget import Budget
from adapter.candidates import Position, make_position
from adapter.decoding import Frozen, Generation, Influence, Pace, Stride, given
from adapter.pair.loading import LocalModel
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT
from adapter.prefix import Prefix
from adapter.request import Sampling
from adapter.upstream.lexicon import Lexicon
from tests.bench.stats import header, row
from tests.support import vocabularies
from tests.support.synthetic import Synthetic
from tokenizer_maps import Context, IdentityBridge
from tokenizer_maps.vocabulary import Vocabulary

TOP = 20
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--vocabulary", default="Llama-3", choices=vocabularies.SOURCES)
    parser.add_argument("--tokens", type=int, default=200, help="of the text")
    parser.add_argument("--turns", type=int, default=5, help="of which the best counts")


def run(args: argparse.Namespace) -> Result:
    """The same text with and without what is hidden, and what the pair alone takes."""
    vocabulary = vocabularies.real(args.vocabulary)
    pair = Pair({"tuned": _model(vocabulary, 0), ANTIEXPERT: _model(vocabulary, 1)})
    lexicon = Lexicon(vocabulary)
    text = _text(lexicon, args.tokens)
    found = {
        name: min(asyncio.run(_scored(pair, lexicon, text, impute)) for _ in range(args.turns))
        for name, impute in (("echo_ms", True), ("echo_head_ms", False))
    }
    pair.close()
    return {"vocabulary": len(vocabulary.kinds), "tokens": len(text), **found}


def report(result: Result) -> str:
    """A table for the documents."""
    lines = header("processor ms a token", f"{result['vocabulary']} tokens")
    lines.append(row("echo_ms", f"{result['echo_ms']:.2f}"))
    lines.append(row("echo_head_ms (tail: zero)", f"{result['echo_head_ms']:.2f}"))
    return "\n".join(lines)


async def _scored(pair: Pair, lexicon: Lexicon, text: tuple[Position, ...], impute: bool) -> float:
    """Milliseconds of processor time a token, the pair's forwards in them."""
    context = Context((0,), b"", ())
    contexts = {"tuned": context, ANTIEXPERT: context}
    reader = pair.reader(IdentityBridge(pair.vocabulary), contexts, {"tuned": 1.0}, None)
    generation = Generation(
        prefix=Prefix.of((0,)),
        sampling=Sampling(),
        influence=Influence(1.0, reader, lexicon, impute, expand=0, limit=math.inf),
        stride=Stride(Pace(), 1),
        seed=0,
        choice=0,
        shown=0,
    )
    began = time.process_time()
    await given(Frozen(Synthetic(pair.vocabulary)), generation, text, Budget(1))
    took = time.process_time() - began
    reader.close()
    return 1e3 * took / len(text)


def _text(lexicon: Lexicon, count: int) -> tuple[Position, ...]:
    """Random tokens, shown with nineteen others that hold nine tenths of the mass with it."""
    random = np.random.default_rng(0)
    logprobs = np.log(0.9 * random.dirichlet(np.ones(TOP), count)).tolist()
    positions = []
    for values in logprobs:
        ids = random.choice(100_000, TOP, replace=False).tolist()
        entries = [lexicon.of_id(i, value) for i, value in zip(ids, values, strict=True)]
        positions.append(make_position(entries, entries[0]))
    return tuple(positions)


def _model(vocabulary: Vocabulary, seed: int) -> LocalModel:
    size = len(vocabulary.kinds)
    config = LlamaConfig(
        vocab_size=size,
        hidden_size=64,
        intermediate_size=128,
        num_hidden_layers=2,
        num_attention_heads=4,
        num_key_value_heads=4,
    )
    torch.manual_seed(seed)
    network = LlamaForCausalLM(config).eval().requires_grad_(False)
    network.set_attn_implementation("sdpa")
    blank = torch.zeros(size, dtype=torch.bool)
    return LocalModel("random", network, vocabulary, frozenset(), blank, 2048)
