"""A form of going on that is known by hearsay: the first answers have to bear it out."""

from collections import OrderedDict
from collections.abc import AsyncGenerator
from contextlib import aclosing
from math import inf

from adapter.candidates import Draft, Usage
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix
from adapter.request import Chat
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.printed import LONGEST, beginning
from adapter.upstream.speaker import Speaker
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Vocabulary

_SLACK = 1
"""Tokens that the place where a text was cut may make of it, more or fewer."""
_REMEMBERED = 64


class UnprovenSpeaker:
    """A speaker whose prompt has to grow by what was said, and by nothing else.

    A server that takes it as another turn puts the turn's ends around it; one that leaves it out
    counts nothing. Both would answer something else than what was asked. With an unknown
    vocabulary only the latter is noticed. `ask` and `stream` raise UpstreamMalformed as well.
    """

    def __init__(self, speaker: Speaker, vocabulary: Vocabulary | None) -> None:
        self._speaker = speaker
        self._vocabulary = vocabulary
        self._proven = False
        self._lengths: OrderedDict[bytes, int] = OrderedDict()  # of prompts, as they were billed
        self.capabilities: Capabilities = speaker.capabilities
        self.identity: tuple[str, ...] = speaker.identity

    async def ask(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        """The speaker's own answer."""
        draft = await self._speaker.ask(prompt, said, n, budget, sampled)
        if not self._proven:
            self._check(Prefix.of(prompt).digest, said, draft.usage)
        return draft

    async def stream(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        """The same in pieces, but a short whole answer where that proves something.

        That is a prompt's first, and then the first that goes on from it: a cut stream tells no
        usage.
        """
        if not self._proven and bool(said) == (Prefix.of(prompt).digest in self._lengths):
            yield beginning(await self.ask(prompt, said, min(n, LONGEST), budget, sampled))
            return
        async with aclosing(self._speaker.stream(prompt, said, n, budget, sampled)) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        """Let go of connections."""
        await self._speaker.close()

    def _check(self, prompt: bytes, said: str, usage: Usage) -> None:
        if usage.calls != 1 or not usage.prompt_tokens:
            return  # of several calls, or of one that is not counted, nothing can be told
        if not said:
            self._lengths[prompt] = usage.prompt_tokens
            if len(self._lengths) > _REMEMBERED:
                self._lengths.popitem(last=False)
        elif prompt in self._lengths:
            self._compare(usage.prompt_tokens - self._lengths[prompt], said)

    def _compare(self, grown: int, said: str) -> None:
        least, most = 1.0, inf
        if self._vocabulary is not None:
            count = len(self._vocabulary.encode(said.encode()))
            least, most = count - _SLACK, count + _SLACK
        if not least <= grown <= most:
            raise UpstreamMalformed(
                "the upstream does not go on from the beginning of an answer as its provider is "
                f"known to: behind one, its prompt grew by {grown} tokens instead of "
                f"{least:g} to {most:g}; `adapter probe --chat` finds out what it does"
            )
        self._proven = least > 0
