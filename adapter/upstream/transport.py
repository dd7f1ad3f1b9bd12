"""The one place that speaks HTTP with a hosted model."""

import asyncio
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Mapping, Sequence
from contextlib import (
    AbstractContextManager,
    AsyncExitStack,
    asynccontextmanager,
    suppress,
)
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, cast

import aiohttp
import httpx

from adapter.candidates import Usage
from adapter.errors import (
    AdapterError,
    SettingsError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.prefix import prompt_length
from adapter.stages import stage
from adapter.upstream.answers import consumed, parsed
from adapter.upstream.breaker import Breaker
from adapter.upstream.events import payloads
from adapter.upstream.meter import STEP, Meter
from adapter.upstream.refusals import out_of_quota, refusal
from adapter.upstream.retries import LONGEST_WAIT, Busy, Retries, Sleep, asked_wait
from adapter.upstream.upstream import Allowance, Call

LONGEST_STREAM = 10
"""Timeouts that a stream may keep us waiting, all waits together."""

MAX_TOKENS = "max_tokens"

_PRINTABLE = re.compile(r"[!-~]+")
_CONNECT = 5.0
_END, _PAUSE = 0.2, 0.005
_TOKENS = 16  # OpenAI's own default of max_tokens
_TURN = 16
"""Tokens that a template puts around a message at most, give or take."""
_ENVELOPE, _ENTRY = 2**20, 2**10
"""Bytes an answer may have, and for each candidate of each token as many again."""

Events = AsyncGenerator[Mapping[str, Any], None]
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_DONE = b"[DONE]"
_COMPLETION, _CHAT = ("prompt", "/completions"), ("messages", "/chat/completions")
_UNSENT = (aiohttp.ClientConnectorError, aiohttp.ConnectionTimeoutError)
"""No connection came about; whatever breaks off later is another error."""


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a hosted model is and how to get in; `timeout` in seconds, retries included.

    `key_name` is what messages call the key, the name of its setting or variable;
    `max_concurrency` bounds the calls under way. Raises SettingsError for a key that no header can
    carry.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    key_name: str = "the API key"
    timeout: float = 30.0
    max_concurrency: int = 64

    def __post_init__(self) -> None:
        if self.api_key is not None and not _PRINTABLE.fullmatch(self.api_key):
            raise SettingsError(f"{self.key_name} holds what no key has: a space or a line break?")

    @property
    def host(self) -> str:
        """Host and port, without path or credentials."""
        return httpx.URL(self.base_url).netloc.decode("ascii")


@dataclass(frozen=True, slots=True)
class Answer:
    """A parsed 200 answer, or one event of it, and the attempts it took: each is a paid call."""

    body: Mapping[str, Any]
    calls: int


Turn = Mapping[str, Any]
"""A chat's message as it is sent."""

Sent = Sequence[int] | str | Sequence[Turn]
"""What is asked about: ids, a text, or a chat's messages."""


@dataclass(frozen=True, slots=True)
class _Question:
    """One completion request, or a chat's, and who pays for it."""

    prompt: Sent
    fields: Mapping[str, Any]
    budget: Allowance
    chat: bool = False

    @property
    def tokens(self) -> int:
        """How many may be generated, by all choices together."""
        return self.choices * self.longest

    @property
    def choices(self) -> int:
        return int(self.fields.get("n", 1))

    @property
    def longest(self) -> int:
        """How many each choice may have."""
        return int(self.fields.get("max_tokens", _TOKENS))

    @property
    def prompt_tokens(self) -> int:
        """The prompt's length, of text no fewer than it has: an answer's usage mends that."""
        return _guessed(self.prompt) if self.chat else prompt_length(cast(Any, self.prompt))

    @property
    def first(self) -> int:
        """How many of them are reserved before it is asked: a stream's are as they come."""
        return min(STEP, self.tokens) if self.fields.get("stream") else self.tokens

    def paid(self, call: Call) -> "_Question":
        """The same for no more tokens than money is left for: fewer choices, then a shorter one."""
        if call.tokens >= self.first:
            return self
        paid = {"max_tokens": min(call.tokens, self.longest)}
        if self.choices > 1:
            paid["n"] = max(1, call.tokens // self.longest)
        return replace(self, fields={**self.fields, **paid})

    @property
    def largest(self) -> int:
        """Bytes of the largest answer that is read."""
        given = len(self.prompt) if self.fields.get("echo") else 0
        shown = self.fields.get("top_logprobs", self.fields.get("logprobs", 0))
        return _ENVELOPE + _ENTRY * (self.tokens + given) * (1 + int(shown))


def limited(fields: Mapping[str, Any], by: str) -> Mapping[str, Any]:
    """The fields, with `max_tokens` under the name that the upstream takes."""
    return {by if name == MAX_TOKENS else name: value for name, value in fields.items()}


def _guessed(messages: Any) -> int:
    """The length of a chat in tokens."""
    return sum(_TURN + len(turn["content"].encode()) for turn in messages)


class Transport:
    """POSTs to one endpoint's /completions: bounded in time, size, attempts and number.

    `chat`: to its /chat/completions, and prompts are messages. `limited_by`: how `max_tokens` is
    called there.
    """

    def __init__(
        self,
        endpoint: Endpoint,
        *,
        chat: bool = False,
        limited_by: str = MAX_TOKENS,
        connect: float = _CONNECT,
        sleep: Sleep = asyncio.sleep,
    ) -> None:
        url = httpx.URL(endpoint.base_url)
        self._server: dict[str, str | int] = {"server.address": url.host}
        if url.port is not None:
            self._server["server.port"] = url.port
        self._endpoint = endpoint
        self._chat = chat
        self._limited_by = limited_by
        self._connect = min(connect, endpoint.timeout)
        self._session: aiohttp.ClientSession | None = None
        self._room = asyncio.Semaphore(endpoint.max_concurrency)
        self._breaker = Breaker(self._where)
        self._retries = Retries(sleep)

    async def complete(self, prompt: Sent, fields: Mapping[str, Any], budget: Allowance) -> Answer:
        """The answer to one completion request; every attempt is a call paid by the budget.

        Raises UpstreamTimeout past the deadline, UpstreamUnavailable when all attempts failed or
        none was made because too many did, UpstreamRefused or ContextTooLong for a 4xx,
        UpstreamMalformed for what is no JSON object, and whatever the budget raises.
        """
        question = _Question(prompt, fields, budget, self._chat)
        until = self._deadline()
        once = partial(self._once, question, until)
        return Answer(*await self._retries(once, self._endpoint.timeout))

    async def stream(
        self, prompt: Sent, fields: Mapping[str, Any], budget: Allowance
    ) -> AsyncGenerator[Answer, None]:
        """The events of a streamed answer as they come; the first tells all attempts.

        Closing the generator closes the connection. The deadline holds for the first event and
        for each wait after it, ten times as much for all waits together. Raises as `complete`
        does; once an event has come nothing is tried again. The budget pays as it goes: where it
        does not reach further, the stream ends with what the budget raises.
        """
        question = _Question(prompt, {**fields, **_STREAMED}, budget, self._chat)
        patience, until = LONGEST_STREAM * self._endpoint.timeout, self._deadline()
        async with AsyncExitStack() as stack:
            begin = partial(self._begin, stack, question, until)
            (events, body, call), calls = await self._retries(begin, self._endpoint.timeout)
            meter = Meter(call, question.prompt_tokens, question.paid(call).tokens)
            while body is not None:
                meter.read(body)
                yield Answer(body, calls)
                await meter.go_on()
                calls, began = 0, time.monotonic()
                async with self._by(began + min(patience, self._endpoint.timeout)):
                    body = await anext(events, None)
                patience -= time.monotonic() - began
            meter.end()

    async def close(self) -> None:
        """Close all connections."""
        if self._session is not None:
            await self._session.close()

    async def _once(self, question: _Question, until: float) -> Mapping[str, Any]:
        async with self._answering(question, until) as (chunks, call):
            async with self._by(until):
                body = self._object(await _whole(chunks))
            usage = consumed(body)
            if usage is not None:
                call.settle(usage)
            return body

    async def _begin(
        self, stack: AsyncExitStack, question: _Question, until: float
    ) -> tuple[Events, Mapping[str, Any] | None, Call]:
        """The events of a stream and the first of them, None where it has none.

        The connection stays open as long as the stack.
        """
        async with AsyncExitStack() as own:
            chunks, call = await own.enter_async_context(self._answering(question, until))
            events = self._events(chunks)
            own.push_async_callback(events.aclose)
            async with self._by(until):
                body = await anext(events, None)
            stack.push_async_exit(own.pop_all())
            return events, body, call

    @asynccontextmanager
    async def _answering(
        self, question: _Question, until: float
    ) -> AsyncGenerator[tuple[AsyncIterator[bytes], Call], None]:
        """The body of a 200 answer, and what was reserved for it.

        Whoever waits in line has nothing reserved, and is no failure of the upstream.
        """
        async with AsyncExitStack() as stack:
            async with self._by(until):
                await stack.enter_async_context(self._room)
            if time.monotonic() >= until:
                raise self._late()
            stack.enter_context(self._breaker.watch())
            stack.enter_context(self._stage(question))
            async with self._by(until):
                reserved = question.budget.call(question.prompt_tokens, question.first)
                call = await stack.enter_async_context(reserved)
                asked = self._asked(question.paid(call), call)
                response = await stack.enter_async_context(asked)
            streams = "text/event-stream" in response.headers.get("content-type", "")
            if question.fields.get("stream") and not streams:
                raise UpstreamMalformed(f"{self._where} does not stream its answers")
            yield self._bounded(response, question.largest), call

    @asynccontextmanager
    async def _asked(
        self, question: _Question, call: Call
    ) -> AsyncGenerator[aiohttp.ClientResponse, None]:
        """The answer to a question; one that was surely not worked on costs nothing."""
        # `from None`: the library's errors quote addresses and headers.
        try:
            response = await self._sent(question)
        except _UNSENT:
            call.settle(Usage())
            raise self._lost() from None
        except aiohttp.ClientError:
            raise self._lost() from None
        try:
            if response.status >= 300:
                if response.status < 500:
                    call.settle(Usage())
                raise await self._failure(response)
            yield response
        finally:
            response.close()

    async def _sent(self, question: _Question) -> aiohttp.ClientResponse:
        """The answer, unread."""
        given = question.prompt
        name, path = _CHAT if question.chat else _COMPLETION
        prompt = given if isinstance(given, str) else list(given)
        fields = limited(question.fields, self._limited_by)
        body = {"model": self._endpoint.model, name: prompt, **fields}
        url = self._endpoint.base_url.rstrip("/") + path
        return await self._connections().post(url, json=body, allow_redirects=False)

    def _connections(self) -> aiohttp.ClientSession:
        """Kept from the first call on, whose event loop they belong to."""
        if self._session is None:
            self._session = aiohttp.ClientSession(
                headers={
                    "authorization": f"Bearer {self._endpoint.api_key or 'none'}",
                    "user-agent": "adapter",
                },
                connector=aiohttp.TCPConnector(
                    limit=0,  # `_room` bounds them
                    keepalive_timeout=30.0,
                    ssl=httpx.create_ssl_context(),  # the same authorities everywhere
                ),
                cookie_jar=aiohttp.DummyCookieJar(),
                timeout=aiohttp.ClientTimeout(connect=self._connect),  # `_by` bounds all else
            )
        return self._session

    async def _bounded(
        self, response: aiohttp.ClientResponse, largest: int
    ) -> AsyncGenerator[bytes, None]:
        try:
            async for chunk in response.content.iter_any():
                largest -= len(chunk)
                if largest < 0:
                    raise UpstreamMalformed(f"{self._where} sends more than was asked for")
                yield chunk
        except aiohttp.ClientError:
            raise self._lost() from None

    async def _events(self, chunks: AsyncIterator[bytes]) -> Events:
        """Parsed events up to the one that says that all is done."""
        async for payload in payloads(chunks):
            if payload == _DONE:
                self._breaker.succeeded()  # all is said: who asked may leave at once
                await _drain(chunks)
                return
            body = self._object(payload)
            if body.get("error"):
                raise self._said(_status(body["error"]), body)
            yield body
        raise self._lost()

    def _stage(self, question: _Question) -> AbstractContextManager[Any]:
        """One attempt, timed; its span says whom was asked for how much, and nothing of what."""
        operation = "chat" if question.chat else "text_completion"
        attributes: dict[str, str | int] = {
            "gen_ai.operation.name": operation,
            "gen_ai.request.model": self._endpoint.model,
            "gen_ai.request.max_tokens": question.longest,
            "gen_ai.request.choice.count": question.choices,
            **self._server,
        }
        return stage("upstream", f"{operation} {self._endpoint.model}", attributes)

    def _deadline(self) -> float:
        return time.monotonic() + self._endpoint.timeout

    @asynccontextmanager
    async def _by(self, until: float) -> AsyncGenerator[None, None]:
        """Raises UpstreamTimeout where the block takes longer, on the monotonic clock."""
        try:
            async with asyncio.timeout(until - time.monotonic()):
                yield
        except TimeoutError:
            raise self._late() from None

    def _object(self, raw: bytes) -> Mapping[str, Any]:
        body = parsed(raw)
        if not isinstance(body, dict):
            raise UpstreamMalformed(f"{self._where} answered with something that is no JSON object")
        return body

    async def _failure(self, response: aiohttp.ClientResponse) -> AdapterError:
        raw = await _whole(self._bounded(response, _ENVELOPE))
        return self._said(response.status, parsed(raw), asked_wait(response.headers))

    def _said(self, status: int, body: Any, wait: float = 0.0) -> AdapterError:
        """The error for an answer that is one; `wait` is what it asks for, in seconds."""
        if status < 500 and (status != 429 or out_of_quota(body)):
            return refusal(
                status,
                body,
                where=self._where,
                model=self._endpoint.model,
                key_name=self._endpoint.key_name,
            )
        if wait > LONGEST_WAIT:
            return UpstreamUnavailable(
                f"{self._where} answered {status}: try again much later",
                retry_after=wait if math.isfinite(wait) else None,
            )
        message = f"{self._where} answered {status}: overloaded or not ready"
        return Busy(message, retry_after=wait or None, crowded=status == 429)

    def _lost(self) -> Busy:
        return Busy(
            f"no connection to {self._where}, or it broke off: "
            "is the server running, and is `base_url` right?"
        )

    def _late(self) -> UpstreamTimeout:
        return UpstreamTimeout(
            f"no answer from {self._where} within {self._endpoint.timeout:g} s: "
            "is it overloaded, or `timeout` too short?"
        )

    @property
    def _where(self) -> str:
        return f"the upstream at {self._endpoint.host}"


async def _whole(chunks: AsyncIterator[bytes]) -> bytes:
    return b"".join([chunk async for chunk in chunks])


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end, so that the connection can be used again, if the end is near.

    Some servers, llama.cpp's among them, end it behind a stream; the pause is to notice that
    before a call is lost on it.
    """
    with suppress(TimeoutError, Busy, UpstreamMalformed):
        async with asyncio.timeout(_END):
            async for _ in chunks:
                pass
            await asyncio.sleep(_PAUSE)


def _status(error: Any) -> int:
    """The status that an error inside a stream would have had; 500 where it does not say."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code < 600 else 500
