"""The pair's engine: tokens a second of many requests at once against a plain loop for each.

Models are Llamas with random weights. Plain is what one writes first: two `DynamicCache`s a
request, a forward of one token a model and step. Nobody waits for an upstream here.
"""

import argparse
import asyncio
import time
from collections.abc import Awaitable, Callable, Iterable
from typing import Any

import numpy as np
import torch
from transformers import DynamicCache, LlamaConfig, LlamaForCausalLM

from adapter.pair.loading import LocalModel, choose_device, choose_dtype
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT, Place, Reader
from tests.bench.stats import header, row
from tokenizer_maps import Context, IdentityBridge
from tokenizer_maps.vocabulary import Kind, Vocabulary

SIZES = {  # vocabulary, hidden, intermediate, layers, heads, heads of keys
    "4M": (8000, 192, 512, 4, 6, 2),
    "15M": (32000, 288, 768, 6, 6, 6),
    "1B": (128256, 2048, 8192, 16, 32, 8),
    "7B": (32000, 4096, 11008, 32, 32, 32),
}
TOP = 20  # candidates
GOALS = {"speedup_16": ">= 2", "identity_ms": "<= 0.2"}
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--size", choices=SIZES, default="15M", help="of each of the two models")
    parser.add_argument("--device", default="auto")
    parser.add_argument("--dtype", default="auto")
    parser.add_argument("--at-once", type=int, nargs="+", default=[1, 4, 16], help="requests")
    parser.add_argument("--prompt", type=int, default=128, help="tokens of each request's own")
    parser.add_argument("--steps", type=int, default=32, help="tokens of each answer")
    parser.add_argument("--draft", type=int, default=16, help="places verified together")
    parser.add_argument("--turns", type=int, default=3, help="of which the best counts")
    parser.add_argument("--kv-memory", type=int, default=None, help="bytes; the pair's default")
    parser.add_argument(
        "--threads", type=int, default=None, help="torch's; its own choice if unset"
    )


def run(args: argparse.Namespace) -> Result:
    """All measurements of one pair."""
    if args.threads:
        torch.set_num_threads(args.threads)
    models = [_model(args, seed) for seed in (0, 1)]
    plain = _best(_plain(models, args) for _ in range(args.turns + 1))
    pair = Pair({"tuned": models[0], ANTIEXPERT: models[1]}, args.kv_memory)
    bench = _Bench(pair, args)
    ours = {
        n: _best(asyncio.run(bench.answers(n)) for _ in range(args.turns)) for n in args.at_once
    }
    on_gpu = models[0].blank.is_cuda
    result: Result = {
        "model": {
            "size": args.size,
            "device": str(models[0].blank.device),
            "dtype": str(_dtype(models)),
        },
        "plain": plain,
        "at_once": ours,
        **{
            f"speedup_{n}": round(one["tokens_s"] / plain["tokens_s"], 2) for n, one in ours.items()
        },
        "draft": asyncio.run(bench.drafts()),
        "identity_ms": asyncio.run(bench.identity()),
        "peak_gpu_mb": round(torch.cuda.max_memory_allocated() / 1e6) if on_gpu else 0,
    }
    pair.close()
    return result


def report(result: Result) -> str:
    """Markdown tables."""
    model = result["model"]
    lines = header("requests at once", "prefill tokens/s", "tokens/s", "KV MB", "against plain")
    lines += [row("plain, one after the other", *result["plain"].values(), "", 1.0)]
    for n, one in result["at_once"].items():
        lines.append(row(n, *one.values(), result[f"speedup_{n}"]))
    lines += ["", *header("number", "value", "goal")]
    numbers = {k: v for k, v in (result["draft"] | result).items() if isinstance(v, float | int)}
    lines += [row(name, value, GOALS.get(name, "")) for name, value in numbers.items()]
    return "\n".join([f"{model['size']} pair, {model['device']}, {model['dtype']}", "", *lines])


class _Bench:
    """Requests of random tokens, each with a prompt of its own."""

    def __init__(self, pair: Pair, args: argparse.Namespace) -> None:
        self._pair, self._args = pair, args
        self._bridge = IdentityBridge(pair.vocabulary)
        self._rng = np.random.default_rng(0)

    def reader(self) -> Reader:
        """A new request."""
        context = Context(tuple(self._random(self._args.prompt)), b"", ())
        contexts = {"tuned": context, ANTIEXPERT: context}
        return self._pair.reader(self._bridge, contexts, {"tuned": 1.0}, None)

    async def answers(self, count: int) -> dict[str, float]:
        """Prompts, then answers token by token, of so many requests at once."""
        readers = [self.reader() for _ in range(count)]
        prefill = await _clocked(lambda: asyncio.gather(*(r.read(()) for r in readers)))
        tokens = self._random(self._args.steps - 1)  # places: one more
        seconds = await _clocked(
            lambda: asyncio.gather(*(self._answer(r, tokens) for r in readers))
        )
        pools = [network.pool for network in self._pair._networks.values()]
        found = {
            "prefill_s": round(count * self._args.prompt / prefill, 1),
            "tokens_s": round(count * self._args.steps / seconds, 1),
            "kv_mb": round(sum(pool.used * pool.token_bytes() for pool in pools) / 1e6, 1),
        }
        for reader in readers:
            reader.close()
        return found

    async def drafts(self) -> dict[str, float]:
        """Milliseconds to read a draft's places together and one by one; the best of 5."""
        together, single = [], []
        for _ in range(5):
            places = self._places(self._random(self._args.draft - 1))
            for times, calls in ((together, [places]), (single, [[one] for one in places])):
                reader = self.reader()
                await reader.read(())
                times.append(await _clocked(lambda r=reader, c=calls: _one_by_one(r, c)))
                reader.close()
        times = [round(min(some) * 1e3, 2) for some in (together, single)]
        return {"draft_ms": times[0], "draft_one_by_one_ms": times[1]}

    async def identity(self) -> float:
        """Milliseconds a place beside the forwards, both models: plan, sets, sums, offsets."""
        reader, tokens = self.reader(), self._random(self._args.draft - 1)
        places = self._places(tokens)
        await reader.offsets(places)
        times = []
        for _ in range(20):
            seconds = await _clocked(lambda: reader.offsets(places))  # nothing is new
            times.append(seconds / len(places))
        reader.close()
        return round(min(times) * 1e3, 3)

    async def _answer(self, reader: Reader, tokens: list[int]) -> None:
        for place in self._places(tokens):
            await reader.offsets([place])

    def _places(self, tokens: list[int]) -> list[Place]:
        """The places behind 0, 1, ... of the tokens, each with candidates."""
        return [
            Place(tuple(tokens[:n]), tuple(self._random(TOP)), (1 / TOP,) * TOP)
            for n in range(len(tokens) + 1)
        ]

    def _random(self, count: int) -> list[int]:
        size: list[int] = self._rng.integers(0, SIZES[self._args.size][0], count).tolist()
        return size


async def _one_by_one(reader: Reader, calls: list[list[Place]]) -> None:
    for places in calls:
        await reader.offsets(places)


async def _clocked(call: Callable[[], Awaitable[object]]) -> float:
    started = time.perf_counter()
    await call()
    return time.perf_counter() - started


def _plain(models: list[LocalModel], args: argparse.Namespace) -> dict[str, float]:
    """One request after the other; more of them do not change what a second brings."""
    rng = np.random.default_rng(0)
    size = SIZES[args.size][0]
    prompt, tokens = (rng.integers(0, size, n).tolist() for n in (args.prompt, args.steps))
    caches = [DynamicCache(config=model.network.config) for model in models]
    started = time.perf_counter()
    _plain_step(models, caches, prompt)
    middle = time.perf_counter()
    for token in tokens:
        _plain_step(models, caches, [token])
    ended = time.perf_counter()
    return {
        "prefill_s": round(args.prompt / (middle - started), 1),
        "tokens_s": round(args.steps / (ended - middle), 1),
    }


def _best(found: Iterable[dict[str, float]]) -> dict[str, float]:
    """Number by number: other work on the machine only ever takes away."""
    turns = list(found)
    return {name: max(turn[name] for turn in turns) for name in turns[0]}


def _plain_step(models: list[LocalModel], caches: list[DynamicCache], ids: list[int]) -> np.ndarray:
    """The offsets of candidates behind some tokens."""
    found = []
    for model, cache in zip(models, caches, strict=True):
        device = model.blank.device
        with torch.inference_mode():
            logits = model.network(
                torch.tensor([ids], device=device), past_key_values=cache, logits_to_keep=1
            ).logits[0, -1]
            found.append(logits.float().log_softmax(-1)[:TOP].cpu().numpy())
    return np.subtract(*found)


def _model(args: argparse.Namespace, seed: int) -> LocalModel:
    device = choose_device(args.device)
    vocabulary, hidden, intermediate, layers, heads, few = SIZES[args.size]
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=hidden,
        intermediate_size=intermediate,
        num_hidden_layers=layers,
        num_attention_heads=heads,
        num_key_value_heads=few,
        max_position_embeddings=8192,
        tie_word_embeddings=args.size != "7B",
    )
    torch.manual_seed(seed)
    default = torch.get_default_dtype()
    torch.set_default_dtype(choose_dtype(args.dtype, device))
    with torch.device(device):
        network = LlamaForCausalLM(config).eval().requires_grad_(False)
        blank = torch.zeros(vocabulary, dtype=torch.bool)
    torch.set_default_dtype(default)
    network.set_attn_implementation("sdpa")
    return LocalModel("random", network, _vocabulary(vocabulary), frozenset(), blank, 8192)


def _vocabulary(size: int) -> Vocabulary:
    return Vocabulary(
        tokens=tuple(b"%d " % i for i in range(size)),
        kinds=(Kind.BYTE,) * size,
        specials={},
        start=(),
        end=frozenset(),
        fingerprint=str(size),
        chat_template=None,
        encoder=lambda data: (),
    )


def _dtype(models: list[LocalModel]) -> torch.dtype:
    return models[0].network.dtype
