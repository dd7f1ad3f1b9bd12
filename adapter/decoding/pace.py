"""Pace: how many tokens to ask the upstream for at once.

With a share b of drafted tokens kept, a call for n tokens yields (1 − bⁿ)/(1 − b) on average. Asked
for too few, round trips and prefixes are paid again and again; asked for too many, tokens are paid
that nobody keeps. The best n minimises what a kept token costs, in seconds or in money.
"""

from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from adapter.price import Price
from adapter.request import LONGEST, Lookahead

Objective = Literal["time", "money"]

_KEPT = 8.0
"""So many tokens of a request's own weigh as much as what the model's other requests saw."""

_FORGET = 0.98
"""What an observation still weighs after one more."""

_LEAST, _MOST = 0.02, 0.995

_USUAL = Price(input=1.0, output=4.0, cached=1.0)


@dataclass(slots=True)
class Pace:
    """What one model's drafts have shown so far: share kept, seconds a call and a token.

    `acceptance` is a share in [0, 1]; `cached` the share of prompt tokens billed as cached.
    """

    objective: Objective = "time"
    price: Price = _USUAL
    acceptance: float = 0.8
    cached: float = 0.0
    _calls: "_Line" = field(default_factory=lambda: _Line())

    @property
    def call_seconds(self) -> float:
        """What a call takes whatever it brings."""
        return self._calls.fit()[0]

    @property
    def token_seconds(self) -> float:
        """What each token adds to a call, the pair's reading of it included."""
        return self._calls.fit()[1]

    def called(self, tokens: int, seconds: float) -> None:
        """A call's tokens were there, and read by the pair, after so many seconds."""
        self._calls.add(float(tokens), seconds)

    def billed(self, prompt: int, cached: int) -> None:
        """A call's prompt tokens, and those of them the upstream had read before."""
        if prompt:
            self.cached += (1.0 - _FORGET) * (cached / prompt - self.cached)

    def walked(self, kept: bool) -> None:
        """A drafted token was kept, or not."""
        self.acceptance += (1.0 - _FORGET) * (float(kept) - self.acceptance)

    def best(self, acceptance: float, prefix: int, left: int) -> int:
        """The n from 1 to `left` at which a kept token costs least behind so many prefix tokens."""
        kept = min(max(acceptance, _LEAST), _MOST)
        n = np.arange(1, min(left, LONGEST) + 1)
        call, token = self._costs(prefix)
        costs = (call + token * n) * (1.0 - kept) / (1.0 - kept**n)
        return int(n[np.argmin(costs)])

    def worth_asking_together(self, prefix: int, n: int) -> bool:
        """Whether runs of n tokens behind one prefix cost less in one call than one by one.

        Together they save a call each, and are made without a look at what the others came to, so
        that more is made in all: in money no more than a run each, in time nothing, as engines
        make them side by side.
        """
        call, token = self._costs(prefix)
        return self.objective == "time" or call > token * n

    def _costs(self, prefix: int) -> tuple[float, float]:
        if self.objective == "time":
            return self._calls.fit()
        price = self.price
        read = price.input + self.cached * (price.cached - price.input)
        return prefix * read, price.output


@dataclass(slots=True)
class Stride:
    """The pace of one choice: the model's, and more and more what this text itself shows."""

    pace: Pace
    lookahead: Lookahead
    _kept: float = 0.0
    _walked: float = 0.0

    @property
    def acceptance(self) -> float:
        """The share of drafted tokens kept, this text's own beside the model's."""
        return (_KEPT * self.pace.acceptance + self._kept) / (_KEPT + self._walked)

    @property
    def streams(self) -> bool:
        """Whether drafts come as streams that are cut where they are left."""
        return self.lookahead == "stream"

    def length(self, prefix: int, left: int) -> int:
        """Tokens to ask for behind so many prefix tokens, with so many left to generate."""
        if self.lookahead == "stream":
            return left
        if self.lookahead == "auto":
            return self.pace.best(self.acceptance, prefix, left)
        return min(self.lookahead, left, LONGEST)

    def walked(self, kept: bool) -> None:
        """A drafted token was kept, or not."""
        self._kept += kept
        self._walked += 1.0
        self.pace.walked(kept)


@dataclass(slots=True)
class _Line:
    """Least squares of seconds over tokens; the past fades, and a guess holds until it has.

    The guess is of what a call is to a token; how fast both are the first call tells.
    """

    # .3 s a call and .02 s a token, known from two calls that never were.
    _sums: tuple[float, ...] = (2.0, 2.0 * 8, 2.0 * 100, 0.92, 2 * 8 * 0.3 + 200 * 0.02)
    _guessed: bool = True

    def add(self, x: float, y: float) -> None:
        if self._guessed:
            self._guessed = False
            intercept, slope = self.fit()
            scale = y / (intercept + slope * x)
            count, xs, squares, ys, products = self._sums
            self._sums = count, xs, squares, scale * ys, scale * products
        new = (1.0, x, x * x, y, x * y)
        self._sums = tuple(_FORGET * s + t for s, t in zip(self._sums, new, strict=True))

    def fit(self) -> tuple[float, float]:
        """Intercept and slope, neither below nothing."""
        n, x, xx, y, xy = self._sums
        spread = n * xx - x * x
        slope = max(0.0, (n * xy - x * y) / spread) if spread > 1e-9 * n * n else 0.0
        intercept = (y - slope * x) / n
        if intercept <= 0.0:
            return 1e-6, max(xy / xx, 1e-9)
        return intercept, slope
