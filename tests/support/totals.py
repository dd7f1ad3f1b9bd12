"""Totals that tell what is out: for tests of money."""

import asyncio

from adapter.budget import RequestTotal


class Watched(RequestTotal):
    """A total that knows what is out, the most that ever was, and how often it was asked."""

    def __init__(self, cap: int) -> None:
        super().__init__(cap)
        self.cap = cap
        self.out = self.most = self.takes = 0

    async def take(self, amount: int) -> bool:
        """Take an amount, after a turn of the loop: others come in between."""
        self.takes += 1
        await asyncio.sleep(0)
        taken = await super().take(amount)
        self.out += amount * taken
        self.most = max(self.most, self.out)
        return taken

    async def give(self, amount: int) -> None:
        await super().give(amount)
        self.out -= amount


class WatchedTotals:
    """One watched total for all names, opened with its first cap."""

    def __init__(self) -> None:
        self.day = Watched(0)

    def of(self, _: str, cap: int) -> Watched:
        if not self.day.cap:
            self.day = Watched(cap)
        return self.day

    async def close(self) -> None:
        await self.day.close()
