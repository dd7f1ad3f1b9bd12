"""Asking a system the almanac's questions through the official openai client."""

import asyncio
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from openai import AsyncOpenAI

from adapter.demo.almanac import Question

MAX_TOKENS = 16
_AT_A_TIME = 4


@dataclass(frozen=True, slots=True)
class Reply:
    """One answer; `steps` is the trace where one was asked for, `calls` what it cost upstream."""

    question: Question
    text: str
    steps: tuple[dict[str, Any], ...] = ()
    calls: int = 0

    @property
    def right(self) -> bool:
        """Whether it is the answer, to the letter."""
        return self.text.strip() == self.question.answer.strip()


async def ask(
    base_url: str,
    model: str,
    questions: Sequence[Question],
    *,
    traced: bool,
    done: Callable[[], None] = lambda: None,
) -> list[Reply]:
    """Every question, greedily, a few at a time; `traced` asks the service for its steps."""
    gate = asyncio.Semaphore(_AT_A_TIME)

    async def one(client: AsyncOpenAI, question: Question) -> Reply:
        async with gate:
            answer = await client.completions.create(
                model=model,
                prompt=question.prompt,
                max_tokens=MAX_TOKENS,
                temperature=0,
                extra_body={"steering": {"trace": True}} if traced else None,
            )
        done()
        return _reply(question, answer)

    async with AsyncOpenAI(base_url=base_url, api_key="none") as client:
        return await asyncio.gather(*(one(client, question) for question in questions))


def _reply(question: Question, answer: Any) -> Reply:
    """What the service adds to OpenAI's answer is in the models' extra fields."""
    choice = answer.choices[0]
    steering = (choice.model_extra or {}).get("steering") or {}
    upstream = (answer.usage.model_extra or {}).get("upstream") or {}
    return Reply(question, choice.text, tuple(steering.get("steps", ())), upstream.get("calls", 1))
