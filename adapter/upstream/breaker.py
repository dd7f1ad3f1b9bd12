"""Breaker: an upstream that fails is left alone, and one call at a time finds out when it is back.

The cache's breaker opens at the first failure and has probes of its own; calls here are paid, so a
failure may be tried again first, and the probe is somebody's call.
"""

import logging
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from adapter.errors import ContextTooLong, UpstreamError, UpstreamTimeout, UpstreamUnavailable

_LOG = logging.getLogger(__name__)

_FAILURES = 5
"""Failures in a row that open it."""
_WAIT = 1.0
"""Seconds between one probe and the next."""


class Breaker:
    """Closed, it lets every call through; open, one probe a second, whose success closes it."""

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._failures = 0
        self._probing = False
        self._next = 0.0

    @contextmanager
    def watch(self) -> Iterator[None]:
        """One call; what it raises says how the upstream is. Raises UpstreamUnavailable if open."""
        probe = self._admit()
        try:
            yield
        except (UpstreamTimeout, UpstreamUnavailable):
            self._failed()
            raise
        except (UpstreamError, ContextTooLong, GeneratorExit):  # it answers; its answer was cut
            self.succeeded()
            raise
        else:
            self.succeeded()
        finally:
            self._probing = self._probing and not probe

    def _admit(self) -> bool:
        """Whether the call is a probe."""
        if self._failures < _FAILURES:
            return False
        wait = self._next - self._clock()
        if self._probing or wait > 0.0:
            raise UpstreamUnavailable(
                f"{self._name} keeps failing and is left alone for a moment",
                retry_after=max(wait, _WAIT if self._probing else 0.0),
            )
        self._probing, self._next = True, self._clock() + _WAIT
        return True

    def _failed(self) -> None:
        self._failures += 1
        self._next = self._clock() + _WAIT
        if self._failures == _FAILURES:
            _LOG.warning("%s keeps failing and is left alone until it is back", self._name)

    def succeeded(self) -> None:
        """The upstream answers, as far as could be seen."""
        if self._failures >= _FAILURES:
            _LOG.info("%s answers again", self._name)
        self._failures = 0
