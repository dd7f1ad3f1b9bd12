"""Retries: which failures are tried again, when, and how often; each attempt is paid."""

import asyncio
import email.utils
import math
import time
from collections.abc import Awaitable, Callable, Mapping
from typing import TypeVar

import tenacity

from adapter.errors import UpstreamUnavailable

ATTEMPTS = 3
LONGEST_WAIT = 10.0
"""Seconds that an upstream may ask to wait and still be tried again."""

_EARNED, _COST, _MOST = 1, 5, 15
"""A call earns a fifth of a retry, and three are there at the start: calls ≤ 1.2 × requests + 3."""

_SOON = tenacity.wait_random_exponential(multiplier=0.5, max=4.0)
_SPREAD = tenacity.wait_random(0.0, 4.0)
"""A 429 hits all clients at once: whoever is to come back later comes back at another time."""

Sleep = Callable[[float], Awaitable[None]]
_T = TypeVar("_T")


class Busy(UpstreamUnavailable):
    """A failure that trying again may mend; `crowded`: it has met others, too."""

    def __init__(
        self, message: str, *, retry_after: float | None = None, crowded: bool = False
    ) -> None:
        super().__init__(message, retry_after=retry_after)
        self.crowded = crowded


class Retries:
    """Tries calls to one upstream again, as long as retries are few among its calls."""

    def __init__(self, sleep: Sleep = asyncio.sleep) -> None:
        self._sleep = sleep
        self._left = _MOST

    async def __call__(
        self, attempt: Callable[[], Awaitable[_T]], seconds: float
    ) -> tuple[_T, int]:
        """What an attempt gave, and how many it took; none begins after so many seconds."""
        self._left = min(_MOST, self._left + _EARNED)
        enough = tenacity.stop_after_attempt(ATTEMPTS) | tenacity.stop_before_delay(seconds)
        retrying = tenacity.AsyncRetrying(
            retry=tenacity.retry_if_exception_type(Busy),
            wait=_wait,
            stop=lambda state: enough(state) or not self._take(),
            sleep=self._sleep,
            reraise=True,
        )
        result: _T = await retrying(attempt)
        return result, retrying.statistics["attempt_number"]

    def _take(self) -> bool:
        """Take a retry, if there is one."""
        if self._left < _COST:
            return False
        self._left -= _COST
        return True


def asked_wait(headers: Mapping[str, str]) -> float:
    """Seconds that an answer asks to wait, `retry-after-ms` first; 0 where it says nothing."""
    exact = _seconds(headers.get("retry-after-ms"))
    if exact is not None:
        return exact / 1000.0
    return retry_after(headers.get("retry-after"), time.time())


def retry_after(header: str | None, now: float) -> float:
    """Seconds a Retry-After header asks to wait at time `now`; 0 where it says nothing sound."""
    seconds = _seconds(header)
    if seconds is not None or header is None:
        return seconds or 0.0
    try:
        return max(0.0, email.utils.parsedate_to_datetime(header).timestamp() - now)
    except (ValueError, OverflowError):
        return 0.0


def _seconds(header: str | None) -> float | None:
    """A number that is not below 0; None where there is none."""
    try:
        number = float(header or "")
    except ValueError:
        return None
    return 0.0 if math.isnan(number) else max(0.0, number)


def _wait(state: tenacity.RetryCallState) -> float:
    error = state.outcome.exception() if state.outcome is not None else None
    if not isinstance(error, Busy):
        return 0.0
    jitter = _SPREAD if error.crowded else _SOON
    return (error.retry_after or 0.0) + jitter(state)
