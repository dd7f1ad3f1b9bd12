"""A breaker: a store that fails is left alone, and one probe at a time finds it well again."""

import logging
import time
from collections.abc import Callable

_log = logging.getLogger(__name__)

_FIRST_WAIT = 0.1
_LONGEST_WAIT = 5.0
_SETTLED = 1.0
_ANNOUNCED_AT = 3


class Breaker:
    """Opens at the first failure, so that an outage costs one deadline, and waits 0.1 to 5 s.

    The wait doubles with each failure in a row, probes included; a row ends when calls succeed
    for a second after closing, so that a store that answers only probes stays mostly alone.
    Three in a row are an outage: one line is logged, and one when the row has ended.
    """

    def __init__(self, name: str, *, clock: Callable[[], float] = time.monotonic) -> None:
        self._name = name
        self._clock = clock
        self._closed = True
        self._probing = False
        self._failures = 0
        self._since = 0.0

    @property
    def closed(self) -> bool:
        """Whether calls are to be made."""
        return self._closed

    def failed(self, reason: str) -> None:
        """A call failed; those that were under way when the first of them did count once."""
        if self._closed:
            self._open(reason)

    def succeeded(self) -> None:
        """A call succeeded."""
        if not self._closed or not self._failures or self._clock() - self._since < _SETTLED:
            return
        if self._failures >= _ANNOUNCED_AT:
            _log.info("%s answers again", self._name)
        self._failures = 0

    def probe(self) -> bool:
        """True for the one caller that is to try now; it must report with `probed`."""
        wait = min(_LONGEST_WAIT, _FIRST_WAIT * 2 ** (self._failures - 1))
        if self._closed or self._probing or self._clock() - self._since < wait:
            return False
        self._probing = True
        return True

    def probed(self, reason: str | None) -> None:
        """How the probe ended: None where it succeeded, else why it did not."""
        self._probing = False
        if reason is not None:
            self._open(reason)
            return
        self._closed = True
        self._since = self._clock()

    def _open(self, reason: str) -> None:
        self._closed = False
        self._since = self._clock()
        self._failures = min(self._failures + 1, 100)
        if self._failures == _ANNOUNCED_AT:
            _log.warning("%s fails (%s) and is left alone until it is back", self._name, reason)
