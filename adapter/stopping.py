"""Release: turns emitted bytes into text that is safe to send, and finds stop strings."""

import codecs
from collections.abc import Sequence


class Release:
    """Text comes out as soon as no open character and no possible stop string holds it back.

    Bytes that are no UTF-8 become U+FFFD, as OpenAI's own text does.
    """

    def __init__(self, stops: Sequence[str]) -> None:
        self._stops = tuple(stops)
        self._decoder = codecs.getincrementaldecoder("utf-8")("replace")
        self._held = ""
        self.stopped = False

    def feed(self, data: bytes) -> str:
        """The text that `data` releases; sets `stopped` when a stop string is complete."""
        self._held += self._decoder.decode(data)
        return self._give(self._safe())

    def flush(self) -> str:
        """All that is still held back, at the end of the answer."""
        if self.stopped:
            return ""
        self._held += self._decoder.decode(b"", final=True)
        return self._give(len(self._held))

    def _give(self, length: int) -> str:
        found = [(at + len(s), at) for s in self._stops if (at := self._held.find(s)) >= 0]
        if found:  # the stop that is complete first counts, so that chunking changes nothing
            self.stopped = True
            length = min(found)[1]
        text, self._held = self._held[:length], self._held[length:]
        return text

    def _safe(self) -> int:
        """How much of the held text cannot be the start of a stop string."""
        longest = max((len(s) for s in self._stops), default=1) - 1
        for start in range(max(0, len(self._held) - longest), len(self._held)):
            if any(s.startswith(self._held[start:]) for s in self._stops):
                return start
        return len(self._held)
