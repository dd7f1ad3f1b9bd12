"""The Python client: AsyncClient, and Client, the same on a private event loop's thread."""

import asyncio
import codecs
import json
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping, Sequence
from contextlib import aclosing, contextmanager
from dataclasses import dataclass, replace
from functools import wraps
from typing import Any, Concatenate, Literal, ParamSpec, Self, TypedDict, TypeVar, Unpack

import httpx

from adapter.candidates import END, END_NAME, Alternative, Step, Usage
from adapter.errors import AdapterError, ServiceError

P = ParamSpec("P")
T = TypeVar("T")

_CONNECT_SECONDS = 5.0
_STEERING = ("alpha", "weights", "lookahead")


class Options(TypedDict, total=False):
    """What a generation can be asked for; absent ones are the service's defaults."""

    alpha: float
    weights: Mapping[str, float]
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


@dataclass(frozen=True, slots=True)
class AnswerUsage:
    """Tokens of the adapted answer, and what it took of the upstream to make it.

    `cost` is in the currency of the configured prices, None without any; `estimated` where the
    upstream did not say what it billed for every part.
    """

    prompt_tokens: int
    completion_tokens: int
    upstream: Usage
    cost: float | None = None
    estimated: bool = False


@dataclass(frozen=True, slots=True)
class Answer:
    """One answer; `steps` is empty where no trace was asked.

    `flags` speak of the answer as a whole: `end_unsteered` where the upstream hid its END.
    `finish` is `budget` where a cap on calls or money ended it.
    """

    text: str
    steps: tuple[Step, ...]
    usage: AnswerUsage
    finish_reason: str
    flags: frozenset[str] = frozenset()
    finish: str | None = None


class AsyncClient:
    """Talks to a running service; `timeout` in seconds for each wait on the network.

    Every method raises ServiceError, with the status and code of the service's answer; 503 and
    504 also stand for a service that cannot be reached or does not answer in time.
    """

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 120.0) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/").removesuffix("/v1") + "/v1",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        )

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
        if (prompt is None) == (messages is None):
            raise TypeError("stream() takes either prompt or messages")
        asked = {"model": model, "prompt": prompt, "messages": messages}
        given = {name: value for name, value in asked.items() if value is not None}
        options["trace"] = options.get("trace") or True
        steps = _Steps()
        async with aclosing(self._chunks(given, options)) as chunks:
            async for chunk in chunks:
                for step in steps.feed(chunk):
                    yield step

    async def models(self) -> tuple[str, ...]:
        """The names that can be asked for."""
        with _translated():
            response = await self._http.get("models")
        if response.is_error:
            raise _refusal(response)
        return _names(response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _answer(self, given: Mapping[str, Any], options: Options) -> Answer:
        """Collected from a stream: one way to read answers, and each step knows its text."""
        held = _Steps()
        texts: list[str] = []
        steps: list[Step] = []
        last = _Chunk()
        async with aclosing(self._chunks(given, options)) as chunks:
            async for chunk in chunks:
                texts.append(chunk.text)
                steps += held.feed(chunk)
                last = last.updated(chunk)
        if last.usage is None or last.finish_reason is None:
            raise _malformed()
        ended = (last.usage, last.finish_reason, last.flags, last.finish)
        return Answer("".join(texts), tuple(steps), *ended)

    async def _chunks(
        self, given: Mapping[str, Any], options: Options
    ) -> AsyncGenerator["_Chunk", None]:
        body = _body(given, options)
        path = "chat/completions" if "messages" in given else "completions"
        with _translated():
            async with self._http.stream("POST", path, json=body) as response:
                if response.is_error:
                    await response.aread()
                    raise _refusal(response)
                async for line in response.aiter_lines():
                    if line == "data: [DONE]":
                        return
                    if line.startswith("data: "):
                        yield _chunk(line.removeprefix("data: "))
        raise ServiceError("the stream broke off before its end", status=502, code="broken_stream")


def _body(given: Mapping[str, Any], options: Options) -> dict[str, Any]:
    fields: dict[str, Any] = dict(options)
    steering = {name: fields.pop(name) for name in _STEERING if name in fields}
    fields["steering"] = {**steering, "trace": fields.pop("trace", True)}
    return {**given, **fields, "stream": True, "stream_options": {"include_usage": True}}


@dataclass(frozen=True, slots=True)
class _Chunk:
    """One event of a stream."""

    text: str = ""
    steps: tuple[Step, ...] = ()
    flags: frozenset[str] = frozenset()
    finish_reason: str | None = None
    usage: AnswerUsage | None = None
    finish: str | None = None

    def updated(self, later: "_Chunk") -> "_Chunk":
        """What is known of the answer as a whole."""
        return _Chunk(
            flags=self.flags | later.flags,
            finish_reason=later.finish_reason or self.finish_reason,
            usage=later.usage or self.usage,
            finish=later.finish or self.finish,
        )


class _Steps:
    """Gives each step its text.

    While bytes or characters are held back the newest step waits: what the end of the answer
    still releases belongs to it.
    """

    def __init__(self) -> None:
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._open = 0
        self._waiting: tuple[Step, ...] = ()

    def feed(self, chunk: _Chunk) -> tuple[Step, ...]:
        """The steps that are complete now."""
        if not chunk.steps:
            return self._end(chunk) if chunk.finish_reason else ()
        newest = replace(chunk.steps[-1], text=chunk.text)
        ready = (*self._waiting, *chunk.steps[:-1])
        self._open -= len(chunk.text)
        self._open += sum(len(self._decoder.decode(step.token)) for step in chunk.steps)
        if self._open or self._decoder.getstate()[0]:
            self._waiting = (newest,)
            return ready
        self._waiting = ()
        return (*ready, newest)

    def _end(self, chunk: _Chunk) -> tuple[Step, ...]:
        waiting, self._waiting = self._waiting, ()
        return tuple(replace(step, text=step.text + chunk.text) for step in waiting)


@contextmanager
def _understood() -> Iterator[None]:
    """Answers in another shape than the service's as ServiceError."""
    try:
        yield
    except (ValueError, LookupError, TypeError, AttributeError) as error:
        raise _malformed() from error


@_understood()
def _names(response: httpx.Response) -> tuple[str, ...]:
    return tuple(model["id"] for model in response.json()["data"])


@_understood()
def _chunk(data: str) -> _Chunk:
    event = json.loads(data)
    if event.get("error"):
        raise _error_event(event["error"])
    choice = event["choices"][0] if event["choices"] else {}
    steering = choice.get("steering") or {}
    usage = event.get("usage")
    return _Chunk(
        text=choice.get("text") or choice.get("delta", {}).get("content") or "",
        steps=tuple(_step(step) for step in steering.get("steps", ())),
        flags=frozenset(steering.get("flags", ())),
        finish_reason=choice.get("finish_reason"),
        usage=_usage(usage) if usage else None,
        finish=steering.get("finish"),
    )


def _step(data: Mapping[str, Any]) -> Step:
    return Step(
        token=_token(data),
        logprob=data["logprob"],
        upstream_logprob=data["upstream_logprob"],
        offset=data["offset"],
        rank=data["rank"],
        status=data["status"],
        flags=frozenset(data["flags"]),
        source=data["source"],
        special=_special(data),
        shown=tuple(_alternative(shown) for shown in data.get("candidates", ())),
    )


def _alternative(data: Mapping[str, Any]) -> Alternative:
    return Alternative(
        token=_token(data),
        upstream_logprob=data["upstream_logprob"],
        offset=data["offset"],
        logprob=data["logprob"],
        special=_special(data),
    )


def _token(data: Mapping[str, Any]) -> bytes:
    return bytes(data["bytes"] or ())


def _special(data: Mapping[str, Any]) -> str | None:
    """A special token has no bytes, and its class or name instead of a text."""
    if data["bytes"] is not None:
        return None
    return END if data["token"] == END_NAME else str(data["token"])


def _usage(data: Mapping[str, Any]) -> AnswerUsage:
    fields = ("calls", "prompt_tokens", "cached_tokens", "completion_tokens")
    spent = data["upstream"]
    upstream = Usage(*(spent[name] for name in fields))
    tokens = (data["prompt_tokens"], data["completion_tokens"])
    return AnswerUsage(*tokens, upstream, spent.get("cost"), bool(spent.get("estimated")))


@contextmanager
def _translated() -> Iterator[None]:
    """Failures of the network as ServiceError."""
    try:
        yield
    except httpx.TimeoutException as error:
        raise ServiceError("the service did not answer in time", status=504) from error
    except httpx.HTTPError as error:
        reason = f"the service cannot be reached: {type(error).__name__}"
        raise ServiceError(reason, status=503) from error


def _malformed() -> ServiceError:
    message = "the answer is not what an adapter service sends; check the address"
    return ServiceError(message, status=502, code="malformed_answer")


def _refusal(response: httpx.Response) -> ServiceError:
    """The service's own words; something in between may answer in another shape."""
    status = response.status_code
    try:
        error = response.json()["error"]
        return ServiceError(str(error["message"]), status=status, code=error["code"])
    except (ValueError, LookupError, TypeError):
        return ServiceError(f"the service answered with status {status}", status=status)


def _error_event(error: Mapping[str, Any]) -> ServiceError:
    """A failure inside a stream: its status is the one it would have had before the first byte."""
    named = (error["type"], error["code"])
    status = _statuses(AdapterError).get(named, AdapterError.status)
    return ServiceError(error["message"], status=status, code=error["code"])


def _statuses(kind: type[AdapterError]) -> dict[tuple[str, str | None], int]:
    """Every error's status by its type and code."""
    found = {(kind.type, kind.code): kind.status}
    for narrower in kind.__subclasses__():
        found |= _statuses(narrower)
    return found


class _LoopThread:
    """An event loop on a thread of its own, which ends with `close` or with its last user."""

    def __init__(self) -> None:
        self._loop = asyncio.new_event_loop()
        self._thread = threading.Thread(target=_run, args=(self._loop,), daemon=True)
        self._thread.start()
        self._stop = weakref.finalize(self, self._loop.call_soon_threadsafe, self._loop.stop)

    @property
    def open(self) -> bool:
        return self._stop.alive

    def wait(self, work: Coroutine[Any, Any, T]) -> T:
        """The result of `work`, done on the loop. Raises RuntimeError after `close`."""
        if not self.open:
            work.close()
            raise RuntimeError("the client is closed")
        future = asyncio.run_coroutine_threadsafe(work, self._loop)
        try:
            return future.result()
        finally:
            future.cancel()  # for Ctrl-C while waiting; a finished future takes no notice

    def close(self) -> None:
        self._stop()
        self._thread.join()


def _run(loop: asyncio.AbstractEventLoop) -> None:
    try:
        loop.run_forever()
    finally:
        loop.run_until_complete(loop.shutdown_asyncgens())
        loop.close()


def _blocking(
    method: Callable[Concatenate[AsyncClient, P], Coroutine[Any, Any, T]],
) -> Callable[Concatenate["Client", P], T]:
    """A method of AsyncClient for callers without an event loop."""

    @wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> T:
        return self._thread.wait(method(self._client, *args, **kwargs))

    return call


def _iterating(
    method: Callable[Concatenate[AsyncClient, P], AsyncGenerator[Step, None]],
) -> Callable[Concatenate["Client", P], Iterator[Step]]:
    """An asynchronous iterator of AsyncClient as a plain one."""

    @wraps(method)
    def call(self: "Client", /, *args: P.args, **kwargs: P.kwargs) -> Iterator[Step]:
        async def following() -> Step | None:
            return await anext(steps, None)

        async def closed() -> None:
            await steps.aclose()

        steps = method(self._client, *args, **kwargs)
        try:
            while step := self._thread.wait(following()):
                yield step
        finally:
            if self._thread.open:
                self._thread.wait(closed())

    return call


class Client:
    """AsyncClient for callers without an event loop; see there."""

    def __init__(self, base_url: str, api_key: str | None = None, timeout: float = 120.0) -> None:
        self._client = AsyncClient(base_url, api_key, timeout)
        self._thread = _LoopThread()

    complete = _blocking(AsyncClient.complete)
    chat = _blocking(AsyncClient.chat)
    models = _blocking(AsyncClient.models)
    stream = _iterating(AsyncClient.stream)

    def close(self) -> None:
        """Close the connections and end the thread."""
        if self._thread.open:
            self._thread.wait(self._client.close())
            self._thread.close()

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()
