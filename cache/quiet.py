"""Warnings that do not repeat themselves with every request."""

import logging
import time
from collections.abc import Callable

_EVERY = 60.0


class Quiet:
    """Logs at most one warning a minute."""

    def __init__(self, log: logging.Logger, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._log = log
        self._clock = clock
        self._next = clock()

    def warn(self, message: str, *details: object) -> None:
        """Log it, unless a warning was logged less than a minute ago."""
        if self._clock() >= self._next:
            self._next = self._clock() + _EVERY
            self._log.warning(message, *details)
