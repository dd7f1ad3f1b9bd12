"""Lookahead: calls, billed tokens and seconds a token, for several lengths of draft, side by side.

The hosted model of the demo, or one given by paths, stands behind a proxy that adds a round trip.
"""

import argparse
import asyncio
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from openai import AsyncOpenAI

from adapter.adapter import Adapter
from adapter.candidates import Ending, Step, Usage
from adapter.demo.almanac import NEW_YEAR, world
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import WEIGHTS
from adapter.request import Lookahead, Request, Sampling
from adapter.settings import Settings
from tests.support.latency import delayed

MODES: tuple[Lookahead, ...] = (1, 4, 16, "auto", "stream")
TOKENS = 128
HEAD = 120  # bytes of a bulletin that are the prompt
Result = dict[str, Any]


def options(parser: argparse.ArgumentParser) -> None:
    """What can be asked for on the command line."""
    parser.add_argument("--prompts", type=int, default=12)
    parser.add_argument("--tokens", type=int, default=TOKENS, help="a continuation at most")
    parser.add_argument("--round-trip", type=float, default=0.05, help="seconds added to a call")
    parser.add_argument("--alpha", type=float, default=1.0)
    parser.add_argument("--hosted", type=Path, help="a GGUF file in place of the demo's model")
    parser.add_argument("--tokenizer", help="the hosted model's, such as hf:DIRECTORY")
    parser.add_argument("--expert", type=Path)
    parser.add_argument("--antiexpert", type=Path)
    parser.add_argument("--text", type=Path, help="prompts: the beginnings of its paragraphs")


@dataclass(frozen=True)
class Run:
    """What one way of drafting took for all prompts."""

    tokens: int
    disagreements: int
    texts: int
    usage: Usage
    seconds: float
    answers: tuple[bytes, ...]

    @property
    def billed(self) -> int:
        return self.usage.prompt_tokens + self.usage.completion_tokens


def run(args: argparse.Namespace) -> Result:
    """All ways of drafting on one engine, then α = 0 beside the engine's own stream."""
    prompts = list(_prompts(args))
    with _hosted(args) as base_url, delayed(base_url, args.round_trip) as far:
        runs = asyncio.run(_runs(_settings(args, far), prompts, args))
        plain, streamed = asyncio.run(_streams(_settings(args, far), far, prompts, args))
    one, auto = runs["1"], runs["auto"]
    calls = auto.usage.calls / auto.tokens
    bound = (auto.disagreements + auto.texts) / auto.tokens
    billed = (auto.billed / auto.tokens) / (one.billed / one.tokens)
    return {
        "prompts": len(prompts),
        "round_trip": args.round_trip,
        "calls_per_token": calls,
        "disagreements": auto.disagreements / auto.tokens,
        "bound_ratio": calls / bound,
        "speedup_ratio": (one.seconds / one.tokens) / (auto.seconds / auto.tokens) * calls,
        "billed_ratio": billed / calls,
        "stream_ratio": streamed / plain,
        "same_text": sum(
            len(set(answers)) == 1
            for answers in zip(*(r.answers for r in runs.values()), strict=True)
        ),
        "runs": {
            name: {
                "calls_per_token": r.usage.calls / r.tokens,
                "billed_per_token": r.billed / r.tokens,
                "ms_per_token": 1e3 * r.seconds / r.tokens,
                "tokens": r.tokens,
            }
            for name, r in runs.items()
        },
    }


def report(result: Result) -> str:
    """Tables for the documents."""
    goals = {
        "calls_per_token": "",
        "disagreements": "",
        "bound_ratio": "≤ 1.25",
        "speedup_ratio": "≥ 0.7",
        "billed_ratio": "≤ 1.3",
        "stream_ratio": "≤ 1.5",
    }
    lines = [
        "| n | calls a token | billed tokens a token | ms a token |",
        "| --- | --- | --- | --- |",
    ]
    for name, r in result["runs"].items():
        lines.append(
            f"| {name} | {r['calls_per_token']:.3f} | {r['billed_per_token']:.1f} "
            f"| {r['ms_per_token']:.1f} |"
        )
    lines += ["", "| measure | value | goal |", "| --- | --- | --- |"]
    lines += [f"| {name} | {result[name]:.3f} | {goal} |" for name, goal in goals.items()]
    lines += ["", f"The same text from every n: {result['same_text']} of {result['prompts']}."]
    return "\n".join(lines)


def _prompts(args: argparse.Namespace) -> Iterator[str]:
    """Beginnings of bulletins of the new year that no model has read, or of a file's paragraphs."""
    if args.text is None:
        bulletins = world().bulletins(NEW_YEAR, edition=99)
        texts = [text for text in bulletins if len(text) > 2 * HEAD]
    else:
        paragraphs = args.text.read_text(encoding="utf-8").split("\n\n")
        texts = [text for text in paragraphs if len(text) > 2 * HEAD]
    for text in texts[: args.prompts]:
        yield text[:HEAD].rsplit(" ", 1)[0]


@contextmanager
def _hosted(args: argparse.Namespace) -> Iterator[str]:
    model = args.hosted or WEIGHTS / "hosted.gguf"
    with Engine(model, EngineOptions(context=1024, alias="hosted", threads=1)) as engine:
        yield engine.base_url


def _settings(args: argparse.Namespace, base_url: str) -> Settings:
    upstream = {
        "base_url": base_url,
        "model": "hosted",
        "api": "llama.cpp",
        "tokenizer": args.tokenizer or f"hf:{WEIGHTS / 'hosted-tokenizer'}",
        "timeout": 120,
    }
    pair = {
        "experts": {"news": str(args.expert or WEIGHTS / "expert")},
        "antiexpert": str(args.antiexpert or WEIGHTS / "antiexpert"),
        "device": "cpu",
    }
    model = {"upstream": upstream, "pair": pair, "alpha": args.alpha}
    return Settings.model_validate({"models": {"hosted": model}, "cache": {"url": "none"}})


async def _runs(
    settings: Settings, prompts: Sequence[str], args: argparse.Namespace
) -> dict[str, Run]:
    adapter = Adapter.from_settings(settings)
    try:
        await _run(adapter, prompts[:1], 4, args)  # warm up, and learn what a call takes
        return {str(mode): await _run(adapter, prompts, mode, args) for mode in MODES}
    finally:
        await adapter.close()


async def _run(
    adapter: Adapter, prompts: Sequence[str], mode: Lookahead, args: argparse.Namespace
) -> Run:
    steps: list[Step] = []
    answers: list[bytes] = []
    usage, start = Usage(), time.perf_counter()
    for prompt in prompts:
        own = [event async for event in adapter.run(_job(adapter, prompt, mode, args))]
        steps += (event for event in own if isinstance(event, Step))
        answers.append(b"".join(event.token for event in own if isinstance(event, Step)))
        usage += next(event.usage for event in own if isinstance(event, Ending))
    return Run(
        tokens=len(steps),
        disagreements=sum(step.rank != 0 for step in steps),
        texts=len(prompts),
        usage=usage,
        seconds=time.perf_counter() - start,
        answers=tuple(answers),
    )


def _job(
    adapter: Adapter,
    prompt: str,
    mode: Lookahead,
    args: argparse.Namespace,
    alpha: float | None = None,
) -> Any:
    sampling = Sampling(max_tokens=args.tokens, temperature=0.0)
    request = Request("hosted", prompt, sampling, alpha=alpha, lookahead=mode)
    return adapter.prepare(request)


async def _streams(
    settings: Settings, base_url: str, prompts: Sequence[str], args: argparse.Namespace
) -> tuple[float, float]:
    """Seconds of the engine's own streams, and of ours at α = 0; one after the other by turns."""
    adapter = Adapter.from_settings(settings)
    plain = ours = 0.0
    try:
        async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
            for prompt in prompts:
                start = time.perf_counter()
                await _own_stream(client, prompt, args)
                between = time.perf_counter()
                async for _ in adapter.run(_job(adapter, prompt, "stream", args, alpha=0.0)):
                    pass
                plain, ours = plain + between - start, ours + time.perf_counter() - between
    finally:
        await adapter.close()
    return plain, ours


async def _own_stream(client: AsyncOpenAI, prompt: str, args: argparse.Namespace) -> None:
    stream = await client.completions.create(
        model="hosted", prompt=prompt, max_tokens=args.tokens, temperature=0, stream=True
    )
    async for _ in stream:
        pass
