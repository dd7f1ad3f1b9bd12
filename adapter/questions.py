"""Questions: what can be asked of a service, on a socket or in process, with typed answers."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import aclosing
from typing import Any, Literal, TypedDict, Unpack

from adapter.answers import Answer, Choice, Score
from adapter.candidates import Step
from adapter.chunks import Chunk, Steps, chunk, malformed
from adapter.errors import ServiceError

_STEERING = ("alpha", "weights", "lookahead", "choices")


class Strength(TypedDict, total=False):
    """How strongly to steer; absent ones are the model's own settings."""

    alpha: float
    weights: Mapping[str, float]


class Options(Strength, total=False):
    """What a generation can be asked for; absent ones are the service's defaults."""

    lookahead: int | Literal["auto", "stream"]
    trace: bool | Literal["candidates"]
    max_tokens: int
    temperature: float
    top_p: float
    seed: int
    stop: str | Sequence[str]
    presence_penalty: float
    frequency_penalty: float
    logit_bias: Mapping[int, float]


class ChatMessage(TypedDict):
    """One turn of a chat."""

    role: str
    content: str


class Questions(ABC):
    """Every method raises the class of `adapter.errors` that the service's error goes by.

    ServiceError stands for what has no class of its own.
    """

    @abstractmethod
    def _lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        """The lines of the event stream that answers a body sent to a path under /v1."""

    async def complete(
        self, *, model: str, prompt: str | Sequence[int], **options: Unpack[Options]
    ) -> Answer:
        """The continuation of a text or of upstream token ids; traced unless trace=False."""
        return await self._answer({"model": model, "prompt": prompt}, options)

    async def chat(
        self, *, model: str, messages: Sequence[ChatMessage], **options: Unpack[Options]
    ) -> Answer:
        """The reply to a chat; traced unless trace=False."""
        return await self._answer({"model": model, "messages": messages}, options)

    async def stream(
        self,
        *,
        model: str,
        prompt: str | Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        **options: Unpack[Options],
    ) -> AsyncGenerator[Step, None]:
        """The steps of an answer to a prompt or to messages, while they are made.

        Their `text` adds up to the answer; a step with text still held back comes one step later.
        """
        asked = _asked("stream", model, prompt, messages)
        options["trace"] = options.get("trace") or True
        steps = Steps()
        async with aclosing(self._chunks(asked, options)) as chunks:
            async for one in chunks:
                for step in steps.feed(one):
                    yield step

    async def score(
        self, *, model: str, text: str | Sequence[int], **strength: Unpack[Strength]
    ) -> Score:
        """How likely a text, or one of upstream token ids, is as adapted."""
        asked = {"model": model, "prompt": text, "echo": True, "max_tokens": 0}
        last, text, _ = await self._collected(asked, {**strength, "trace": True})
        if last.usage is None:
            raise malformed()
        return Score(text, last.echo, last.usage)

    async def choose(
        self,
        *,
        model: str,
        choices: Sequence[str],
        prompt: str | Sequence[int] | None = None,
        messages: Sequence[ChatMessage] | None = None,
        **strength: Unpack[Strength],
    ) -> Choice:
        """The likeliest of 2 to 64 labels behind a prompt or as the reply to messages."""
        asked = _asked("choose", model, prompt, messages)
        options = {**strength, "choices": list(choices), "trace": False}
        last, text, _ = await self._collected(asked, options)
        if last.usage is None or last.verdict is None:
            raise malformed()
        return Choice(text, last.verdict.labels, last.verdict.uncertain, last.usage)

    async def _answer(self, asked: Mapping[str, Any], options: Options) -> Answer:
        last, text, steps = await self._collected(asked, options)
        if last.usage is None or last.finish_reason is None:
            raise malformed()
        return Answer(text, steps, last.usage, last.finish_reason, last.flags, last.finish)

    async def _collected(
        self, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> tuple[Chunk, str, tuple[Step, ...]]:
        """A whole answer from its stream: one way to read them, and each step knows its text."""
        held, last = Steps(), Chunk()
        texts: list[str] = []
        steps: list[Step] = []
        async with aclosing(self._chunks(asked, options)) as chunks:
            async for one in chunks:
                texts.append(one.text)
                steps += held.feed(one)
                last = last.updated(one)
        return last, "".join(texts), tuple(steps)

    async def _chunks(
        self, asked: Mapping[str, Any], options: Mapping[str, Any]
    ) -> AsyncGenerator[Chunk, None]:
        path = "chat/completions" if "messages" in asked else "completions"
        async with aclosing(self._lines(path, _body(asked, options))) as lines:
            async for line in lines:
                if line == "data: [DONE]":
                    return
                if line.startswith("data: "):
                    yield chunk(line.removeprefix("data: "))
        raise ServiceError("the stream broke off before its end", status=502, code="broken_stream")


def _asked(
    method: str,
    model: str,
    prompt: str | Sequence[int] | None,
    messages: Sequence[ChatMessage] | None,
) -> dict[str, Any]:
    if (prompt is None) == (messages is None):
        raise TypeError(f"{method}() takes either prompt or messages")
    given = {"prompt": prompt} if messages is None else {"messages": messages}
    return {"model": model, **given}


def _body(asked: Mapping[str, Any], options: Mapping[str, Any]) -> dict[str, Any]:
    fields = dict(options)
    steering = {name: fields.pop(name) for name in _STEERING if name in fields}
    fields["steering"] = {**steering, "trace": fields.pop("trace", True)}
    return {**asked, **fields, "stream": True, "stream_options": {"include_usage": True}}
