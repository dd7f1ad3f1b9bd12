"""Upstream: a hosted model that shows its next-token distributions."""

from collections.abc import AsyncGenerator, Sequence
from contextlib import AbstractAsyncContextManager
from typing import Protocol

from adapter.candidates import Draft, Usage
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities


class Call(Protocol):
    """One attempt at a call, paid for in advance: so many output `tokens` of it."""

    @property
    def tokens(self) -> int: ...

    async def more(self, output_tokens: int, least: int | None = None) -> None:
        """Reserve so many output tokens in all; where money is short fewer, but at least `least`.

        Raises where that is too much.
        """
        ...

    def settle(self, usage: Usage, estimated: bool = False) -> None:
        """Say what the call consumed; the last word counts, and without one all is spent."""
        ...


class Allowance(Protocol):
    """What may still be spent on calls."""

    def call(
        self, prompt_tokens: int, output_tokens: int
    ) -> AbstractAsyncContextManager[Call, bool | None]:
        """Reserve an attempt at a call before it is made; raises where it cannot be had.

        Where money is short, for fewer output tokens: those of the Call are what may be asked for.
        """
        ...


class Upstream(Protocol):
    """A hosted model behind an API.

    `identity` names all that its distributions depend on beside the prefix: dialect, address,
    model, tokenizer, number of candidates. Every attempt at a call takes one from the budget.
    All methods raise UpstreamError, ContextTooLong, and what the budget raises.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def identity(self) -> tuple[str, ...]: ...

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """Up to n positions: position j stands behind the prefix and the drafted tokens before j.

        None at all only with `finish_reason` stop: the upstream ended the text and hid how.
        `finish_reason` is None where the run was cut short of what the upstream generated.
        Greedy, or `sampled`: each token drawn from the distribution shown for it, where
        `capabilities.rejection`.
        """
        ...

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Sampled runs for up to so many choices, from one request, where `capabilities.several`.

        Each is drawn independently of the others. At least one; the first tells what all cost.
        """
        ...

    def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The run of `draft` in pieces as they come, where `capabilities.streams`.

        Closing the generator closes the connection, which ends the upstream's work. The pieces'
        usage adds up: prompt tokens are guessed with the first and put right with the last, which
        may take some off. Only the last may have a `finish_reason`, and it may have no positions.
        """
        ...

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        """Log-probabilities (nats) of chosen next tokens, where `capabilities.scoring`.

        Those the upstream cannot tell are left out.
        """
        ...

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        """The position behind each id of a text, where `capabilities.text_scoring` is echo.

        All but the last have the id that comes next as their `drafted`, with its log-probability,
        None where that is not told. The last one, which some do not show, has the upstream's own.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
