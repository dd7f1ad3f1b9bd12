"""The demo's run: every system is asked every question."""

import asyncio
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from adapter.demo.almanac import Question
from adapter.demo.asking import Reply, ask
from adapter.demo.stage import STEERED, WHOLE, Stage

Done = Callable[[str], None]
"""Told the name of the system at each answer."""


@dataclass(frozen=True, slots=True)
class Replies:
    """What each system answered to the new and to the old questions; seconds in all."""

    new: dict[str, list[Reply]]
    old: dict[str, list[Reply]]
    seconds: float


def ask_everyone(
    stage: Stage, new: Sequence[Question], old: Sequence[Question], done: Done
) -> Replies:
    """Ask all systems, one after the other; with the whole vocabulary only what is new."""
    started = time.monotonic()
    replies = asyncio.run(_ask_served(stage, [*new, *old], done))
    replies["expert"] = _ask_expert(stage.expert, [*new, *old], done)
    replies["adapted_whole"] = asyncio.run(
        ask(stage.service, WHOLE, new, traced=True, done=partial(done, "adapted_whole"))
    )
    return Replies(
        new={system: r[: len(new)] for system, r in replies.items()},
        old={system: r[len(new) :] for system, r in replies.items() if len(r) > len(new)},
        seconds=time.monotonic() - started,
    )


async def _ask_served(
    stage: Stage, questions: Sequence[Question], done: Done
) -> dict[str, list[Reply]]:
    where = {
        "hosted": (stage.hosted, "hosted"),
        "adapted": (stage.service, STEERED),
        "tuned": (stage.tuned, "tuned"),
    }
    return {
        system: await ask(
            url, model, questions, traced=url == stage.service, done=partial(done, system)
        )
        for system, (url, model) in where.items()
    }


def _ask_expert(folder: Path, questions: Sequence[Question], done: Done) -> list[Reply]:
    """The expert by itself: what a small tuned model knows without the hosted one."""
    from tokenizers import Tokenizer

    from adapter.demo.measure import greedy
    from adapter.pair.loading import load_model

    expert = load_model(str(folder), "cpu", "float32").network
    tokenizer = Tokenizer.from_file(str(folder / "tokenizer.json"))
    texts = greedy(expert, tokenizer, [q.prompt for q in questions])
    for _ in texts:
        done("expert")
    return [Reply(q, text) for q, text in zip(questions, texts, strict=True)]
