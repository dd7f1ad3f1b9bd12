"""Upstream: a hosted model that shows its next-token distributions."""

from typing import Protocol

from adapter.candidates import Draft
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities


class Allowance(Protocol):
    """What may still be spent on calls."""

    def take(self) -> None:
        """Take one call before it is made; raises where none is left."""
        ...


class Upstream(Protocol):
    """A hosted model behind an API.

    `identity` names all that its distributions depend on beside the prefix: dialect, address,
    model, tokenizer, number of candidates.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def identity(self) -> tuple[str, ...]: ...

    async def draft(self, prefix: Prefix, n: int, budget: Allowance) -> Draft:
        """Up to n positions: position j stands behind the prefix and the drafted tokens before j.

        None at all only with `finish_reason` stop: the upstream ended the text and hid how.
        `finish_reason` is None where the run was cut short of what the upstream generated.
        Every attempt takes a call from the budget. Raises UpstreamError, ContextTooLong, and
        what the budget raises.
        """
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...
