"""Cache: what a repeated request costs, with every kind of cache and with a Redis that is lost.

The hosted model is the demo's, behind llama.cpp's server.
"""

import argparse
import asyncio
import os
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from typing import Any

from adapter.adapter import Adapter
from adapter.candidates import Ending, Step
from adapter.demo.almanac import NEW_YEAR, world
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import WEIGHTS
from adapter.model import load_models
from adapter.request import Request, Sampling
from adapter.settings import Settings
from cache import Cache, open_cache
from tests.support.redis_server import RedisServer, redis_server

TOKENS = 64
HEAD = 120  # bytes of a bulletin that are the prompt
SECRET = "BENCH_CACHE_SECRET"
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="a continuation at most")


def run(args: argparse.Namespace) -> Result:
    """Each kind of cache on one engine: cold, again, and with another seed and strength.

    Four tokens a draft: the lengths of `auto` depend on the time that calls take.
    """
    os.environ.setdefault(SECRET, "a secret for a bench")
    bulletins = world().bulletins(NEW_YEAR, edition=99)
    texts = [text for text in bulletins if len(text) > 2 * HEAD][: args.prompts]
    prompts = [text[:HEAD].rsplit(" ", 1)[0] for text in texts]
    options = EngineOptions(context=1024, alias="hosted", threads=1)
    with Engine(WEIGHTS / "hosted.gguf", options) as engine, _caches() as (urls, redis):
        kinds = {
            name: asyncio.run(
                _kind(_settings(engine.base_url, url), prompts, args.tokens, _loss(name, redis))
            )
            for name, url in urls.items()
        }
    return {
        "prompts": len(prompts),
        "warm_calls": sum(kind["other_calls"] for name, kind in kinds.items() if name in KEPT),
        "reads_per_run": max(kind["reads_per_run"] for name, kind in kinds.items() if name in KEPT),
        "same_text": sum(kind["same"] for kind in kinds.values()),
        "texts": len(kinds) * len(prompts),
        "kinds": kinds,
    }


KEPT = ("memory", "sqlite", "redis")
LOST = {"redis, frozen": RedisServer.freeze, "redis, killed": RedisServer.kill}


def report(result: Result) -> str:
    """Tables for the documents."""
    lines = [
        "| cache | calls, cold | calls, again | ms a token, cold | ms a token, again |",
        "| --- | --- | --- | --- | --- |",
    ]
    for name, kind in result["kinds"].items():
        cold, again = 1e3 * kind["cold_seconds"], 1e3 * kind["again_seconds"]
        lines.append(
            f"| {name} | {kind['cold_calls']} | {kind['again_calls']} "
            f"| {cold / kind['tokens']:.1f} | {again / kind['tokens']:.1f} |"
        )
    lines += ["", "| measure | value | goal |", "| --- | --- | --- |"]
    for name, goal in (("warm_calls", "0"), ("reads_per_run", "1")):
        lines.append(f"| {name} | {result[name]:g} | {goal} |")
    lines += ["", f"The same text, cold and again: {result['same_text']} of {result['texts']}."]
    return "\n".join(lines)


@dataclass(frozen=True)
class Answer:
    """The steps of one answer, its upstream calls, and the seconds it took."""

    steps: tuple[Step, ...]
    calls: int
    seconds: float

    @property
    def text(self) -> bytes:
        return b"".join(step.token for step in self.steps)


class Counting:
    """A cache that notes which keys were asked for, and which were there."""

    def __init__(self, inner: Cache) -> None:
        self.asked: list[bytes] = []
        self.found: set[bytes] = set()
        self._inner = inner

    async def get(self, key: bytes) -> bytes | None:
        self.asked.append(key)
        value = await self._inner.get(key)
        if value is not None:
            self.found.add(key)
        return value

    def __getattr__(self, name: str) -> Any:
        return getattr(self._inner, name)


@contextmanager
def _caches() -> Iterator[tuple[dict[str, str], RedisServer]]:
    """The addresses by name, and the Redis that two of them lose."""
    with redis_server() as redis, tempfile.TemporaryDirectory() as folder:
        yield (
            {
                "none": "none",
                "memory": "memory://",
                "sqlite": f"sqlite:///{folder}/cache.db",
                "redis": redis.url(),
                **dict.fromkeys(LOST, redis.url()),
            },
            redis,
        )


def _loss(name: str, redis: RedisServer) -> Callable[[], None]:
    """What happens to Redis, which is there and empty before."""
    redis.kill()
    redis.start()
    return (lambda: LOST[name](redis)) if name in LOST else (lambda: None)


def _settings(base_url: str, url: str) -> Settings:
    upstream = {
        "base_url": base_url,
        "model": "hosted",
        "api": "llama.cpp",
        "tokenizer": f"hf:{WEIGHTS / 'hosted-tokenizer'}",
        "timeout": 120,
    }
    pair = {
        "experts": {"news": str(WEIGHTS / "expert")},
        "antiexpert": str(WEIGHTS / "antiexpert"),
        "device": "cpu",
    }
    cache = {"url": url, "secret_env": SECRET}
    models = {"hosted": {"upstream": upstream, "pair": pair}}
    return Settings.model_validate({"models": models, "cache": cache})


async def _kind(
    settings: Settings, prompts: Sequence[str], tokens: int, lose: Callable[[], None]
) -> Result:
    """Three passes over all prompts; where Redis is lost, it is after a few tokens to warm up."""
    opened = open_cache(settings.cache.url, settings.cache.size, settings.cache.ttl)
    cache: Any = None if opened is None else Counting(opened)
    adapter = Adapter(load_models(settings, cache), settings.limits, cache)
    greedy, drawn = Sampling(tokens, 0.0), Sampling(tokens, 0.3, seed=7)
    try:
        await _answer(adapter, "To begin with", Sampling(4, 0.0), 1.0)
        lose()
        cold = [await _answer(adapter, prompt, greedy, 1.0) for prompt in prompts]
        if cache is not None:
            cache.asked, cache.found = [], set()
        again = [await _answer(adapter, prompt, greedy, 1.0) for prompt in prompts]
        reads = 0.0 if cache is None else len(cache.asked) / max(1, len(cache.found))
        other = [await _answer(adapter, prompt, drawn, 0.9) for prompt in prompts]
    finally:
        await adapter.close()
    return {
        "tokens": sum(len(answer.steps) for answer in cold),
        "cold_calls": sum(answer.calls for answer in cold),
        "again_calls": sum(answer.calls for answer in again),
        "other_calls": sum(_paid(a, b) for a, b in zip(cold, other, strict=True)),
        "reads_per_run": reads,
        "cold_seconds": sum(answer.seconds for answer in cold),
        "again_seconds": sum(answer.seconds for answer in again),
        "same": sum(a.text == b.text for a, b in zip(cold, again, strict=True)),
    }


async def _answer(adapter: Adapter, prompt: str, sampling: Sampling, alpha: float) -> Answer:
    start = time.perf_counter()
    job = adapter.prepare(Request("hosted", prompt, sampling, alpha=alpha, lookahead=4))
    events = [event async for event in adapter.run(job)]
    steps = tuple(event for event in events if isinstance(event, Step))
    calls = next(event.usage.calls for event in events if isinstance(event, Ending))
    return Answer(steps, calls, time.perf_counter() - start)


def _paid(cold: Answer, other: Answer) -> int:
    """Steps along the first text, up to and with the first other token, that were paid for."""
    paid = 0
    for one, two in zip(cold.steps, other.steps, strict=False):
        paid += two.source == "upstream"
        if one.token != two.token:
            break
    return paid
