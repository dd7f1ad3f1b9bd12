"""Speaker: asks an API that takes text, and reads its answer; it knows no rule of prefixes."""

from abc import ABC, abstractmethod
from collections.abc import AsyncGenerator, Sequence
from dataclasses import replace
from typing import Protocol

from adapter.candidates import Draft
from adapter.prefix import Prefix
from adapter.request import Chat
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.upstream import Allowance


class Speaker(Protocol):
    """A hosted model that is asked with a text or a chat, and the beginning of its own answer.

    `TextUpstream` makes an Upstream of it. `identity` as an Upstream's. Every candidate has an id:
    its vocabulary's, or where none is known one made of its bytes (`unknown.SpeltNames`); what
    cannot be named is left out and counts as hidden. All methods raise as an Upstream's do.
    """

    @property
    def capabilities(self) -> Capabilities: ...

    @property
    def identity(self) -> tuple[str, ...]: ...

    async def ask(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """Up to n positions behind the prompt and what was said since, as `Upstream.draft`.

        A speaker whose `capabilities.continues` is "none" is always asked with nothing said.
        """
        ...

    def stream(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same run in pieces as they come, as `Upstream.stream`."""
        ...

    async def close(self) -> None:
        """Let go of connections."""
        ...


class Drawing(Speaker, Protocol):
    """A speaker that also draws the answers of several choices."""

    async def draws(
        self, prompt: str | Chat, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        """Sampled runs behind the prompt, as `Upstream.draws`."""
        ...


class Prompted(ABC):
    """An upstream that can be asked with any prompt, ids or text; a prefix goes as its ids."""

    capabilities: Capabilities
    identity: tuple[str, ...]

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The run behind a prefix."""
        return await self.run(prefix.ids, n, budget, sampled)

    def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same run, a piece for each event."""
        return self.run_stream(prefix.ids, n, budget, sampled)

    @abstractmethod
    async def run(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The run behind a prompt, as `Upstream.draft`."""

    @abstractmethod
    def run_stream(
        self, prompt: Sequence[int] | str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same run in pieces, as `Upstream.stream`."""

    @abstractmethod
    async def close(self) -> None:
        """Let go of connections."""


class PromptSpeaker:
    """A completions API: what was said is sent as the end of the prompt."""

    def __init__(self, asked: Prompted) -> None:
        self._asked = asked
        self.capabilities = replace(asked.capabilities, continues="text", continues_by="prompt")
        self.identity = asked.identity

    async def ask(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The run behind the text."""
        return await self._asked.run(_text(prompt) + said, n, budget, sampled)

    def stream(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same in pieces."""
        return self._asked.run_stream(_text(prompt) + said, n, budget, sampled)

    async def close(self) -> None:
        """Let go of connections."""
        await self._asked.close()


def _text(prompt: str | Chat) -> str:
    if isinstance(prompt, Chat):
        raise ValueError("a completions API takes no chat: it is rendered beforehand")
    return prompt
