"""A daily total that replicas share through a Redis which may die at any time."""

import asyncio
import contextlib
import logging
import time
from collections.abc import Callable
from typing import TYPE_CHECKING
from urllib.parse import quote

from cache.cache import Unanswered
from cache.totals import Purse

if TYPE_CHECKING:  # importing it imports redis, which only those with a Redis should pay for
    from cache.link import RedisLink

_log = logging.getLogger(__name__)

_PREFIX = "adapter:total:"
_BLOCKS = 50
"""A lease takes a fiftieth of the cap at a time: so much may lie idle in each replica."""

_IDLE = 60.0
_KEPT = 2 * 86400


class Lease:
    """A replica's part of a total in Redis, taken from it in blocks and spent without asking.

    Two counters, `taken` and `given`, hold the total as their difference. A block counts as taken
    before it is spent, so a crash, a lost answer or a lost Redis only ever leave the total too
    high: the sum of all that replicas spend cannot pass the cap.

    That needs a Redis that remembers: `appendonly yes`, no eviction of keys in use. Both counters
    only grow, so whoever finds a smaller number than it saw before knows that Redis forgot, and
    nobody takes more that day; only replicas started since could be fooled until then.
    """

    def __init__(
        self,
        link: "RedisLink",
        name: str,
        cap: int,
        *,
        idle: float = _IDLE,
        clock: Callable[[], float] = time.time,
    ) -> None:
        self._link = link
        self._name = name
        self._cap = cap
        self._idle = idle
        self._purse = Purse(clock)
        self._seen = 0
        self._shut_on = ""
        self._closed = False
        self._block: asyncio.Task[bool] | None = None
        self._returns: asyncio.TimerHandle | None = None
        self._returning: set[asyncio.Task[None]] = set()

    async def take(self, amount: int) -> bool:
        """Take an amount, if need be with another block; False where Redis gives none."""
        while True:
            self._turn()
            if self._closed:
                return False
            if self._purse.spend(amount):
                self._stay()
                return True
            if amount > self._cap or not await self._more(amount):
                return False

    async def give(self, amount: int) -> None:
        """Give back what was taken and surely not spent; this replica can spend it again."""
        self._turn()
        self._purse.put_back(amount)
        self._stay()

    async def close(self) -> None:
        """Give the rest of the block back; the link stays open."""
        self._closed = True
        if self._block is not None:
            await asyncio.wait({self._block})
        if self._returns is not None:
            self._returns.cancel()
        self._turn()
        await asyncio.gather(self._return(), *self._returning)

    async def _more(self, amount: int) -> bool:
        """Wait for another block, together with all who need one; False where nothing came.

        The block is a task of its own: were it cancelled with a request, its money would be lost.
        """
        if self._block is None or self._block.done():
            self._block = asyncio.create_task(self._take_block(amount))
        return await asyncio.shield(self._block)

    async def _take_block(self, amount: int) -> bool:
        day = self._purse.day
        block = max(amount - self._purse.held, self._cap // _BLOCKS)
        try:
            given = await self._ask("GET", self._key(day, "given"))
            taken = await self._add(day, "taken", block)
            if self._purse.day != day:
                return True  # it is yesterday's; ask again
            if taken - block < max(self._seen, given):
                await self._shut(day, given)
                return False
        except Unanswered:
            return False
        self._seen = taken
        # `given` is the older of the two: the total is at most what it seems.
        granted = min(block, max(0, self._cap - (taken - block - given)))
        self._purse.held += granted
        await self._give_back(day, block - granted)
        return granted > 0

    async def _give_back(self, day: str, amount: int) -> None:
        """Tell Redis, at most once: what is not answered may have been carried out."""
        if amount:
            with contextlib.suppress(Unanswered):
                await self._add(day, "given", amount)

    async def _shut(self, day: str, given: int) -> None:
        """Let nobody take more today: what was spent before Redis forgot it is not known."""
        if self._shut_on != day:
            self._shut_on = day
            _log.error(
                "%s lost today's total; no more is taken until midnight UTC", self._link.name
            )
        await self._add(day, "taken", self._cap + given)

    async def _return(self) -> None:
        amount, self._purse.held = self._purse.held, 0
        await self._give_back(self._purse.day, amount)

    def _stay(self) -> None:
        """Begin the idle time anew."""
        if self._returns is not None:
            self._returns.cancel()
        if not self._closed:
            self._returns = asyncio.get_running_loop().call_later(self._idle, self._leave)

    def _leave(self) -> None:
        """Idle: others may need it. While Redis is away it is all there is, so it is kept."""
        if self._link.down:
            self._stay()
        else:
            task = asyncio.create_task(self._return())
            self._returning.add(task)
            task.add_done_callback(self._returning.discard)

    def _turn(self) -> None:
        if self._purse.turn():
            self._seen = 0

    def _key(self, day: str, counter: str) -> str:
        return f"{_PREFIX}{quote(self._name, safe='')}:{day}:{counter}"

    async def _add(self, day: str, counter: str, amount: int) -> int:
        """The counter after adding; raises Unanswered only where that is not known."""
        key = self._key(day, counter)
        total = await self._ask("INCRBY", key, amount)
        with contextlib.suppress(Unanswered):
            await self._link.call("EXPIRE", key, _KEPT)
        return total

    async def _ask(self, *command: str | int) -> int:
        answer = await self._link.call(*command)
        if answer is None:
            return 0
        if isinstance(answer, bytes) and answer.isdigit():
            return int(answer)
        if not isinstance(answer, int):
            raise self._link.nonsense()
        return answer
