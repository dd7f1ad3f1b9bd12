"""Daily totals that may never pass a cap."""

import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import Protocol

_LATE = 600.0
"""Seconds after midnight in which a return may be of yesterday's money: no request lives longer."""


class Total(Protocol):
    """What has been taken today, UTC, out of a cap; amounts are whole, such as micro-dollars."""

    async def take(self, amount: int) -> bool:
        """Take an amount; False where the cap would not hold, or cannot be known to."""
        ...

    async def give(self, amount: int) -> None:
        """Give back what was taken and surely not spent."""
        ...

    async def close(self) -> None:
        """Give back what is held; nothing is taken after that."""
        ...


class Purse:
    """What may still be spent today without asking anyone; yesterday's is worthless."""

    def __init__(self, clock: Callable[[], float]) -> None:
        self._clock = clock
        self.day = self._today()
        self.held = 0
        self._settled = 0.0

    def turn(self) -> bool:
        """Begin the new day, if it is one; a clock set back begins none."""
        today = self._today()
        if today <= self.day:
            return False
        self.day, self.held = today, 0
        self._settled = self._clock() + _LATE
        return True

    def spend(self, amount: int) -> bool:
        if amount < 0:
            raise ValueError("an amount is not negative")
        if amount > self.held:
            return False
        self.held -= amount
        return True

    def put_back(self, amount: int) -> None:
        if amount < 0:
            raise ValueError("an amount is not negative")
        if self._clock() >= self._settled:
            self.held += amount

    def _today(self) -> str:
        return datetime.fromtimestamp(self._clock(), UTC).date().isoformat()


class LocalTotal:
    """A total of this process alone; it begins anew with the process."""

    def __init__(self, cap: int, *, clock: Callable[[], float] = time.time) -> None:
        self._cap = cap
        self._purse = Purse(clock)
        self._purse.held = cap

    async def take(self, amount: int) -> bool:
        """Take an amount if the cap allows it."""
        self._turn()
        return self._purse.spend(amount)

    async def give(self, amount: int) -> None:
        """Give back what was taken and surely not spent."""
        self._turn()
        self._purse.put_back(amount)

    async def close(self) -> None:
        """Nothing is taken after that."""
        self._purse.held = 0
        self._cap = 0

    def _turn(self) -> None:
        if self._purse.turn():
            self._purse.held = self._cap
