"""The Python client: AsyncClient, and Client, the same on a private event loop's thread."""

import asyncio
import math
import threading
import weakref
from collections.abc import AsyncGenerator, Callable, Coroutine, Iterator, Mapping
from contextlib import aclosing, contextmanager
from functools import wraps
from typing import Any, Concatenate, ParamSpec, Self, TypeVar

import httpx
import tenacity

from adapter.answers import Answer, AnswerUsage, Choice, Score
from adapter.candidates import Step
from adapter.chunks import error_of, understood
from adapter.errors import AdapterError, ServiceError
from adapter.questions import ChatMessage, Options, Questions, Strength

__all__ = [
    "Answer",
    "AnswerUsage",
    "AsyncClient",
    "ChatMessage",
    "Choice",
    "Client",
    "Options",
    "Score",
    "Strength",
]

P = ParamSpec("P")
T = TypeVar("T")

RETRIES = 2
_CONNECT_SECONDS = 5.0
_LONGEST_WAIT = 30.0
"""Seconds that the service may ask to wait and still be asked again."""

_UNSENT = (httpx.ConnectError, httpx.ConnectTimeout, httpx.PoolTimeout)
_SOON = tenacity.wait_random_exponential(multiplier=0.5, max=8.0)


class AsyncClient(Questions):
    """Talks to a running service; `timeout` in seconds for each wait on the network.

    A service that was not reached, or says that a repeat may help, is asked again, up to
    `max_retries` times; once an answer has begun nothing is repeated. ServiceError with status
    503 and 504 also stands for a service that cannot be reached or does not answer in time.
    """

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = RETRIES,
    ) -> None:
        self._http = httpx.AsyncClient(
            base_url=base_url.rstrip("/").removesuffix("/v1") + "/v1",
            headers={"authorization": f"Bearer {api_key}"} if api_key else {},
            timeout=httpx.Timeout(timeout, connect=min(timeout, _CONNECT_SECONDS)),
        )
        self._retries = max_retries

    async def models(self) -> tuple[str, ...]:
        """The names that can be asked for."""
        with _translated():
            async with aclosing(await self._send("GET", "models")) as response:
                await response.aread()
        return _names(response)

    async def close(self) -> None:
        """Close the connections."""
        await self._http.aclose()

    async def __aenter__(self) -> Self:
        return self

    async def __aexit__(self, *_: object) -> None:
        await self.close()

    async def _lines(self, path: str, body: Mapping[str, Any]) -> AsyncGenerator[str, None]:
        with _translated():
            async with aclosing(await self._send("POST", path, body)) as response:
                async for line in response.aiter_lines():
                    yield line

    async def _send(
        self, method: str, path: str, body: Mapping[str, Any] | None = None
    ) -> httpx.Response:
        """An answer with its body still to come, after as many attempts as are safe."""
        request = self._http.build_request(method, path, json=body)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(_UNSENT) | tenacity.retry_if_result(_repeatable),
            wait=_wait,
            stop=tenacity.stop_after_attempt(self._retries + 1),
            retry_error_callback=_outcome,
        )
        response: httpx.Response = await retrying(self._once, request)
        if response.is_error:
            raise _refusal(response)
        return response

    async def _once(self, request: httpx.Request) -> httpx.Response:
        response = await self._http.send(request, stream=True)
        if response.is_error:
            await response.aread()
        return response


def _repeatable(response: httpx.Response) -> bool:
    """The service says so; where it does not, those who turn others away did no work."""
    if not response.is_error or _asked_wait(response) > _LONGEST_WAIT:
        return False
    said = response.headers.get("x-should-retry")
    return said == "true" if said else response.status_code in (429, 503)


def _wait(state: tenacity.RetryCallState) -> float:
    outcome = state.outcome
    told = outcome is not None and outcome.exception() is None and _asked_wait(outcome.result())
    return told or _SOON(state)


def _asked_wait(response: httpx.Response) -> float:
    """Seconds that an answer asks to wait, `retry-after-ms` first; 0 where it says nothing."""
    for header, unit in (("retry-after-ms", 1e-3), ("retry-after", 1.0)):
        try:
            seconds = float(response.headers.get(header, "nan")) * unit
        except ValueError:
            continue
        if not math.isnan(seconds):
            return max(0.0, seconds)
    return 0.0


def _outcome(state: tenacity.RetryCallState) -> Any:
    """What the last attempt gave, or raised."""
    return state.outcome.result() if state.outcome is not None else None


@understood()
def _names(response: httpx.Response) -> tuple[str, ...]:
    return tuple(model["id"] for model in response.json()["data"])


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


def _refusal(response: httpx.Response) -> AdapterError:
    """The service's own words; something in between may answer in another shape."""
    status = response.status_code
    try:
        error = error_of(response.json()["error"], status)
    except (ValueError, LookupError, TypeError):
        return ServiceError(f"the service answered with status {status}", status=status)
    error.retry_after = _asked_wait(response) or None
    return error


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

    def __init__(
        self,
        base_url: str,
        api_key: str | None = None,
        timeout: float = 120.0,
        max_retries: int = RETRIES,
    ) -> None:
        self._client = AsyncClient(base_url, api_key, timeout, max_retries)
        self._thread = _LoopThread()

    complete = _blocking(AsyncClient.complete)
    chat = _blocking(AsyncClient.chat)
    models = _blocking(AsyncClient.models)
    score = _blocking(AsyncClient.score)
    choose = _blocking(AsyncClient.choose)
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
