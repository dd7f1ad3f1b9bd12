"""The one place that speaks HTTP with a hosted model."""

import asyncio
import email.utils
import json
import logging
import math
import re
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, cast

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
from adapter.upstream.refusals import out_of_quota, refusal
from adapter.upstream.upstream import Allowance

ATTEMPTS = 3
LONGEST_WAIT = 10.0
"""Seconds of Retry-After that are still waited for."""

_PRINTABLE = re.compile(r"[!-~]+")
_CONNECT = 5.0
_LIMITS = httpx.Limits(max_connections=100, max_keepalive_connections=20, keepalive_expiry=30.0)
_JITTER = tenacity.wait_random_exponential(multiplier=0.5, max=4.0)

# Version 2 of the SDK logs whole request bodies at DEBUG, and those hold prompts.
logging.getLogger("openai").setLevel(logging.INFO)

Sleep = Callable[[float], Awaitable[None]]


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
    """A parsed 200 answer and how many attempts it took, each of them a paid call."""

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
        retrying = tenacity.AsyncRetrying(
            stop=tenacity.stop_after_attempt(ATTEMPTS),
            retry=tenacity.retry_if_exception_type(_Busy),
            wait=_wait,
            sleep=self._sleep,
            reraise=True,
        )
        body: Mapping[str, Any]
        try:
            async with asyncio.timeout(self._endpoint.timeout):
                body = await retrying(self._once, list(prompt), fields, budget)
        except TimeoutError:
            raise self._late() from None
        return Answer(body, retrying.statistics["attempt_number"])

    async def close(self) -> None:
        """Close all connections."""
        await self._sdk.close()

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
        body = _parse(raw.content)
        if not isinstance(body, dict):
            raise UpstreamMalformed(f"{self._where} answered with something that is no JSON object")
        return body

    def _failure(self, error: openai.APIStatusError) -> AdapterError:
        status, body = error.status_code, _parse(error.response.content)
        if status < 500 and (status != 429 or out_of_quota(body)):
            return refusal(
                status,
                body,
                where=self._where,
                model=self._endpoint.model,
                key_name=self._endpoint.key_name,
            )
        wait = retry_after(error.response.headers.get("retry-after"), time.time())
        if wait > LONGEST_WAIT:
            return UpstreamUnavailable(f"{self._where} answered {status}: try again much later")
        return _Busy(f"{self._where} answered {status}: overloaded or not ready", wait)

    def _broken(self, error: openai.APIConnectionError) -> UpstreamTimeout | _Busy:
        connecting = isinstance(error.__cause__, httpx.ConnectTimeout)
        if isinstance(error, openai.APITimeoutError) and not connecting:
            return self._late()
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
