"""What a stream has printed of the tokens it shows: some proxies leave steps out of streams."""

from codecs import getincrementaldecoder
from collections.abc import Sequence
from dataclasses import replace
from typing import Protocol

from adapter.candidates import Draft, Position
from adapter.errors import UpstreamMalformed

LONGEST = 4
"""Tokens in which a character has to be finished, as its bytes are four at most."""


class Spoken(Protocol):
    """A run that knows what has been printed of it so far."""

    @property
    def text(self) -> str: ...


class Printed:
    """Lets the positions of a stream through as soon as its text spells their tokens.

    LiteLLM drops chunks without text, and with them the steps of tokens that end inside a
    character: what comes next would be taken for another step than it is. `holds`: positions that
    have printed nothing wait, and are given up where they turn out not to be all (`parted`).
    Otherwise all pass at once, and a contradiction is an UpstreamMalformed: a sampled run must
    not give up anything, as that would favour some samples.
    """

    def __init__(self, run: Spoken, holds: bool) -> None:
        self.parted = False
        self._run = run
        self._holds = holds
        self._shown = 0
        self._spelt = b""
        self._printed = 0  # bytes of it
        self._held: list[tuple[Position, int]] = []

    def through(self, positions: Sequence[Position]) -> tuple[Position, ...]:
        """Those of all positions so far that are settled and were not yet given."""
        self._shown += len(positions)
        for position in positions:
            drafted = position.drafted
            if drafted is not None and drafted.special is None:
                self._spelt += drafted.token
            self._held.append((position, len(self._spelt)))
        expected, whole = _printed(self._spelt)
        text = bare(self._run.text)
        if text == expected:
            return self._settled(whole)
        if not expected.startswith(text) and not self._untold(expected, whole):
            self._part()
        return self._settled(0)

    def rest(self, count: int | None) -> tuple[Position, ...]:
        """What is left once no more comes, if that is all of `count` tokens the upstream made."""
        if count is not None and count > self._shown + 1 and not self.parted:  # one: a hidden END
            self._part()
        left = [position for position, _ in self._held]
        self.parted = self.parted or (bool(left) and self._shown != count)
        return () if self.parted else tuple(left)

    def _untold(self, expected: str, whole: int) -> bool:
        """Whether the text of a sampled run tells nothing: of half characters, and of no names."""
        named = all(position.drafted is not None for position, _ in self._held)
        halves = whole < len(self._spelt) or "\ufffd" in expected
        return not self._holds and (halves or not named)

    def _part(self) -> None:
        if not self._holds:
            raise UpstreamMalformed(
                "the upstream's stream leaves out tokens, so nobody can tell which its "
                "log-probabilities belong to: `adapter probe` finds that out, then it is not used"
            )
        self.parted = True

    def _settled(self, whole: int) -> tuple[Position, ...]:
        """Up to the last position of which something is printed, or all."""
        if self.parted:
            return ()
        count = len(self._held)
        if self._holds:
            count = 0
            if whole > self._printed:
                count = 1 + next(n for n, (_, end) in enumerate(self._held) if end >= whole)
                self._printed = whole
            self.parted = len(self._held) - count > LONGEST
        given = tuple(position for position, _ in self._held[:count])
        del self._held[:count]
        return given


def beginning(run: Draft) -> Draft:
    """A whole run of LONGEST that stands for a longer stream: only the upstream's stop ends it."""
    return run if run.finish_reason == "stop" else replace(run, finish_reason=None)


def _printed(spelt: bytes) -> tuple[str, int]:
    """How servers print bytes, without spaces, and how many of them: not yet a half character."""
    decoder = getincrementaldecoder("utf-8")("replace")
    text = decoder.decode(spelt)
    return bare(text), len(spelt) - len(decoder.getstate()[0])


def bare(text: str) -> str:
    """A text without its spaces, which some servers tidy."""
    return "".join(text.split())
