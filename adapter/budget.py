"""Budget: what one request may still spend on upstream calls: their number, and money."""

import asyncio
import logging
from collections.abc import AsyncGenerator, Mapping, Sequence
from contextlib import asynccontextmanager
from dataclasses import dataclass
from typing import Protocol

from adapter.candidates import Usage
from adapter.errors import BudgetExceeded, MoneyExceeded
from adapter.price import Price
from cache import Total

_LOG = logging.getLogger(__name__)

_CALLS = "limits.calls_per_request"


class Ledger(Protocol):
    """Whoever keeps count beyond the request; amounts in nano-units."""

    def spent(self, nanos: int) -> None: ...

    def refused(self, cap: str) -> None: ...


@dataclass(slots=True)
class Bill:
    """What was spent so far, in nano-units, None without a price; `estimated` in any part."""

    nanos: int | None = None
    estimated: bool = False


class Budget:
    """Caps on calls and on money, shared by all choices of a request.

    A call is reserved before it is made: one call, and its price from every total in `caps`, which
    names them by their settings. What it turns out to have cost is settled afterwards.
    """

    def __init__(
        self,
        calls: int,
        price: Price | None = None,
        caps: Mapping[str, Total] | None = None,
        ledger: Ledger | None = None,
    ) -> None:
        self.bill = Bill(None if price is None else 0)
        self._stopped = False
        self._cap = calls
        self._left = calls
        self._price = price
        self._caps = dict(caps or {})
        self._ledger = ledger

    @asynccontextmanager
    async def call(self, prompt_tokens: int, output_tokens: int) -> AsyncGenerator["Call", None]:
        """One attempt at a call, reserved; at the end of the block it is settled.

        Where money is short it is for as many output tokens as can be paid, `tokens` of the call.
        Raises BudgetExceeded, MoneyExceeded where not even one can; nothing is taken then.
        """
        if self._stopped:
            raise asyncio.CancelledError
        if self._left <= 0:
            raise self.refusal(_CALLS)
        self._left -= 1
        call = Call(self, prompt_tokens)
        try:
            await call.more(output_tokens, least=min(1, output_tokens))
        except BaseException:
            self._left += 1
            await _give(list(self._caps.values()), call.reserved)
            raise
        try:
            yield call
        finally:
            await self._settle(call)

    @property
    def calls(self) -> int:
        """How many calls were made, those that failed too."""
        return self._cap - self._left

    def stop(self) -> None:
        """Nobody waits for the answer any more: no call begins, tasks that try are cancelled."""
        self._stopped = True

    def cost(self, usage: Usage) -> int:
        """What so many tokens cost, in nano-units; 0 without a price."""
        return 0 if self._price is None else self._price.nanos(usage)

    async def take(self, nanos: int) -> str | None:
        """Take an amount from every total, or from none; the cap that refused it."""
        refused = None
        taken: list[Total] = []
        try:
            for cap, total in self._caps.items():
                if not await total.take(nanos):
                    refused = cap
                    break
                taken.append(total)
        except BaseException:
            await _give(taken, nanos)
            raise
        if refused is not None:
            await _give(taken, nanos)
        return refused

    def refusal(self, cap: str) -> BudgetExceeded:
        """The error for a cap that is reached, which is logged and counted."""
        _LOG.info("no upstream call: %s is reached", cap)
        if self._ledger is not None:
            self._ledger.refused(cap)
        if cap == _CALLS:
            return BudgetExceeded(
                f"this request reached its cap of {self._cap} upstream calls "
                f"({_CALLS}); ask for fewer tokens or raise the cap"
            )
        return MoneyExceeded(f"what is left of {cap} does not pay for another upstream call")

    async def _settle(self, call: "Call") -> None:
        """Give back what was not spent; what was spent beyond the reservation is taken too."""
        spent = call.reserved if call.usage is None else self.cost(call.usage)
        for total in self._caps.values():
            if spent <= call.reserved:
                await total.give(call.reserved - spent)
            else:
                await total.take(spent - call.reserved)
        self.bill.estimated |= call.estimated
        if self.bill.nanos is not None:
            self.bill.nanos += spent
            if self._ledger is not None:
                self._ledger.spent(spent)


async def _give(totals: Sequence[Total], nanos: int) -> None:
    for total in totals:
        await total.give(nanos)


class Call:
    """One attempt at a call while it is under way; `tokens` of output are paid for so far.

    Where nobody settles it, all that was reserved counts as spent, and as an estimate.
    """

    def __init__(self, budget: Budget, prompt_tokens: int) -> None:
        self.tokens = 0
        self.reserved = 0
        self.usage: Usage | None = None
        self.estimated = True
        self._budget = budget
        self._prompt_tokens = prompt_tokens

    async def more(self, output_tokens: int, least: int | None = None) -> None:
        """Reserve so many output tokens in all; where money is short fewer, but at least `least`.

        Raises MoneyExceeded where that is too much, taking nothing.
        """
        refused = await self._reserve(output_tokens)
        if refused is None:
            return
        if least is not None and least < output_tokens:
            # Before all between: where nothing is left, as for the rest of a day, it is two asks.
            refused = await self._reserve(least)
        if refused is not None:
            raise self._budget.refusal(refused)
        paid, unpaid = self.tokens, output_tokens
        while unpaid - paid > 1:
            middle = (paid + unpaid) // 2
            if await self._reserve(middle) is None:
                paid = middle
            else:
                unpaid = middle

    def settle(self, usage: Usage, estimated: bool = False) -> None:
        """Say what the call consumed, `Usage()` for nothing at all; the last word counts."""
        self.usage, self.estimated = usage, estimated

    async def _reserve(self, output_tokens: int) -> str | None:
        """Reserve so many in all, or nothing more: then the cap that refused it."""
        usage = Usage(prompt_tokens=self._prompt_tokens, completion_tokens=output_tokens)
        amount = self._budget.cost(usage)
        if amount > self.reserved:
            refused = await self._budget.take(amount - self.reserved)
            if refused is not None:
                return refused
            self.reserved = amount
        self.tokens = output_tokens
        return None


class RequestTotal:
    """A total of one request alone, which no midnight renews."""

    def __init__(self, cap: int) -> None:
        self._left = cap

    async def take(self, amount: int) -> bool:
        """Take an amount if the cap allows it."""
        if amount > self._left:
            return False
        self._left -= amount
        return True

    async def give(self, amount: int) -> None:
        """Give back what was taken and not spent."""
        self._left += amount

    async def close(self) -> None:
        """Nothing is taken after that."""
        self._left = 0
