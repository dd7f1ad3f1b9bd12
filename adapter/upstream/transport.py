"""The one place that speaks HTTP with a hosted model."""

import asyncio
import email.utils
import json
import logging
import math
import re
import time
from collections.abc import AsyncGenerator, AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import AsyncExitStack, suppress
from dataclasses import dataclass, field
from typing import Any, TypeVar, cast

import httpx
import openai
import tenacity

from adapter.errors import (
    AdapterError,
    SettingsError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.upstream.events import payloads
from adapter.upstream.refusals import out_of_quota, refusal
from adapter.upstream.upstream import Allowance

ATTEMPTS = 3
LONGEST_WAIT = 10.0
"""Seconds of Retry-After that are still waited for."""
LONGEST_STREAM = 10
"""Timeouts that a stream may keep us waiting, all waits together."""

_PRINTABLE = re.compile(r"[!-~]+")
_CONNECT = 5.0
_END = 0.2
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)
_JITTER = tenacity.wait_random_exponential(multiplier=0.5, max=4.0)

# Version 2 of the SDK logs whole request bodies at DEBUG, and those hold prompts.
logging.getLogger("openai").setLevel(logging.INFO)

Sleep = Callable[[float], Awaitable[None]]
Events = AsyncGenerator[Mapping[str, Any], None]
_T = TypeVar("_T")
_STREAMED = {"stream": True, "stream_options": {"include_usage": True}}
_DONE = b"[DONE]"


@dataclass(frozen=True, slots=True)
class Endpoint:
    """Where a hosted model is and how to get in; `timeout` in seconds, retries included.

    `key_name` is what messages call the key, the name of its setting or variable. Raises
    SettingsError for a key that no header can carry.
    """

    base_url: str
    model: str
    api_key: str | None = field(default=None, repr=False)
    key_name: str = "the API key"
    timeout: float = 30.0

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


class _Busy(UpstreamUnavailable):
    """A failure that trying again may mend; `wait` is what the server asked for, in seconds."""

    def __init__(self, message: str, wait: float = 0.0) -> None:
        super().__init__(message)
        self.wait = wait


class Transport:
    """POSTs to one endpoint's /completions: bounded in time and in attempts."""

    def __init__(
        self, endpoint: Endpoint, *, connect: float = _CONNECT, sleep: Sleep = asyncio.sleep
    ) -> None:
        http = httpx.AsyncClient(
            trust_env=False,
            follow_redirects=False,
            limits=_LIMITS,
            timeout=httpx.Timeout(endpoint.timeout, connect=min(connect, endpoint.timeout)),
        )
        # The SDK's annotation names httpx2 from version 3 on; it takes httpx clients as well.
        self._sdk = openai.AsyncOpenAI(
            base_url=endpoint.base_url,
            api_key=endpoint.api_key or "none",
            max_retries=0,
            http_client=cast(Any, http),
        )
        # Otherwise the SDK fills these from the environment, for whatever server this is.
        self._sdk.organization = self._sdk.project = None
        self._endpoint = endpoint
        self._sleep = sleep

    async def complete(
        self, prompt: Sequence[int], fields: Mapping[str, Any], budget: Allowance
    ) -> Answer:
        """The answer to one completion request; every attempt takes a call from the budget.

        Raises UpstreamTimeout past the deadline, UpstreamUnavailable when all attempts failed,
        UpstreamRefused or ContextTooLong for a 4xx, UpstreamMalformed for what is no JSON object,
        and whatever the budget raises.
        """
        return Answer(*await self._patiently(self._once, list(prompt), fields, budget))

    async def stream(
        self, prompt: Sequence[int], fields: Mapping[str, Any], budget: Allowance
    ) -> AsyncGenerator[Answer, None]:
        """The events of a streamed answer as they come; the first tells all attempts.

        Closing the generator closes the connection. The deadline holds for the first event and
        for each wait after it, ten times as much for all waits together. Raises as `complete`
        does; once an event has come nothing is tried again.
        """
        fields, patience = {**fields, **_STREAMED}, LONGEST_STREAM * self._endpoint.timeout
        async with AsyncExitStack() as stack:
            (events, body), calls = await self._patiently(
                self._open, stack, list(prompt), fields, budget
            )
            while body is not None:
                yield Answer(body, calls)
                calls, began = 0, time.monotonic()
                body = await self._next(events, patience)
                patience -= time.monotonic() - began

    async def close(self) -> None:
        """Close all connections."""
        await self._sdk.close()

    async def _patiently(
        self, attempt: Callable[..., Awaitable[_T]], *arguments: Any
    ) -> tuple[_T, int]:
        """What an attempt gave, and how many it took; all of them within the deadline."""
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            retry=tenacity.retry_if_exception_type(_Busy),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                result: _T = await retrying(attempt, *arguments)
        except TimeoutError:
            raise self._late() from None
        return result, retrying.statistics["attempt_number"]

    async def _once(
        self, prompt: list[int], fields: Mapping[str, Any], budget: Allowance
    ) -> Mapping[str, Any]:
        budget.take()
        # `from None` throughout: the SDK's errors quote the answer, and that may quote the prompt.
        try:
            raw = await self._sdk.completions.with_raw_response.create(
                model=self._endpoint.model, prompt=prompt, extra_body=fields
            )
        except openai.APIConnectionError as error:
            raise self._broken(error) from None
        except openai.APIStatusError as error:
            raise self._failure(error) from None
        return self._object(raw.content)

    async def _open(
        self, stack: AsyncExitStack, prompt: list[int], fields: Mapping[str, Any], budget: Allowance
    ) -> tuple[Events, Mapping[str, Any] | None]:
        """The events of a stream and the first of them, None where it has none.

        The connection stays open as long as the stack.
        """
        budget.take()
        async with AsyncExitStack() as own:
            try:
                response = await own.enter_async_context(
                    self._sdk.completions.with_streaming_response.create(
                        model=self._endpoint.model, prompt=prompt, extra_body=fields
                    )
                )
            except openai.APIConnectionError as error:
                raise self._broken(error) from None
            except openai.APIStatusError as error:
                raise self._failure(error) from None
            if "text/event-stream" not in response.headers.get("content-type", ""):
                raise UpstreamMalformed(f"{self._where} does not stream its answers")
            events = self._events(response.iter_bytes())
            own.push_async_callback(events.aclose)
            first = await anext(events, None)
            stack.push_async_exit(own.pop_all())
            return events, first

    async def _events(self, chunks: AsyncIterator[bytes]) -> Events:
        """Parsed events up to the one that says that all is done."""
        try:
            async for payload in payloads(chunks):
                if payload == _DONE:
                    await _drain(chunks)
                    return
                body = self._object(payload)
                if body.get("error"):
                    raise self._said(_status(body["error"]), body)
                yield body
        except httpx.TimeoutException:
            raise self._late() from None
        except httpx.HTTPError:
            raise self._lost() from None
        raise self._lost()

    async def _next(self, events: Events, patience: float) -> Mapping[str, Any] | None:
        try:
            async with asyncio.timeout(min(patience, self._endpoint.timeout)):
                return await anext(events, None)
        except TimeoutError:
            raise self._late() from None

    def _object(self, raw: bytes) -> Mapping[str, Any]:
        body = _parse(raw)
        if not isinstance(body, dict):
            raise UpstreamMalformed(f"{self._where} answered with something that is no JSON object")
        return body

    def _failure(self, error: openai.APIStatusError) -> AdapterError:
        header = error.response.headers.get("retry-after")
        return self._said(error.status_code, _parse(error.response.content), header)

    def _said(self, status: int, body: Any, header: str | None = None) -> AdapterError:
        """The error for an answer that is one; `header` is its Retry-After."""
        if status < 500 and (status != 429 or out_of_quota(body)):
            return refusal(
                status,
                body,
                where=self._where,
                model=self._endpoint.model,
                key_name=self._endpoint.key_name,
            )
        wait = retry_after(header, time.time())
        if wait > LONGEST_WAIT:
            return UpstreamUnavailable(f"{self._where} answered {status}: try again much later")
        return _Busy(f"{self._where} answered {status}: overloaded or not ready", wait)

    def _broken(self, error: openai.APIConnectionError) -> UpstreamTimeout | _Busy:
        connecting = isinstance(error.__cause__, httpx.ConnectTimeout)
        if isinstance(error, openai.APITimeoutError) and not connecting:
            return self._late()
        return self._lost()

    def _lost(self) -> _Busy:
        return _Busy(
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


def retry_after(header: str | None, now: float) -> float:
    """Seconds a Retry-After header asks to wait at time `now`; 0 where it says nothing sound."""
    if header is None:
        return 0.0
    try:
        seconds = float(header)
    except ValueError:
        seconds = _until(header, now)
    return 0.0 if math.isnan(seconds) else max(0.0, seconds)


def _until(date: str, now: float) -> float:
    try:
        return email.utils.parsedate_to_datetime(date).timestamp() - now
    except (ValueError, OverflowError):
        return 0.0


async def _drain(chunks: AsyncIterator[bytes]) -> None:
    """Read to the end, so that the connection can be used again, if the end is near."""
    with suppress(TimeoutError, httpx.HTTPError):
        async with asyncio.timeout(_END):
            async for _ in chunks:
                pass


def _status(error: Any) -> int:
    """The status that an error inside a stream would have had; 500 where it does not say."""
    code = error.get("code") if isinstance(error, dict) else None
    return code if type(code) is int and 400 <= code < 600 else 500


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    asked = error.wait if isinstance(error, _Busy) else 0.0
    return asked + _JITTER(state)


def _parse(raw: bytes) -> Any:
    """JSON, or None; NaN and infinities stay floats, which no reader of log-probabilities keeps."""
    try:
        return json.loads(raw)
    except (ValueError, RecursionError):
        return None
