"""A synthetic upstream that takes text only, on a tokenizer that drifts and breaks characters."""

from collections.abc import AsyncGenerator
from contextlib import aclosing
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from adapter.candidates import Draft
from adapter.prefix import Prefix, pending
from adapter.request import Chat
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.upstream import Allowance
from tests.support.synthetic import Synthetic, vocabulary_of_words

_BOOST = 7.0

VOCABULARY = vocabulary_of_words(
    *(bytes([b]) for b in b"abcdefgh <"),
    *(b"ab", b"abc", b"cd", b"de", b" a", b" b", b"  ", b"ef gh", b"gh", b"ba", b"bab"),
    *(b"<|en", b"d|>", b"<|"),  # spell the end
    *(b"\xc3", b"\xa9", "é".encode()),
    *(b"\xe6", b"\x9d", b"\xb1", b"\xe6\x9d", "東".encode(), b" \xe6", b"\xb1\xe6", b"\x9d\xb1"),
    *(b"\xf0", b"\x9f", b"\x9a", b"\xa2", b"\xf0\x9f", b"\x9a\xa2", "🚢".encode(), b"a\xf0\x9f"),
)  # fmt: skip
"""Longest word first: what was generated as a, b, c is read again as abc."""


class Broken(Synthetic):
    """A language model that mostly finishes the characters it begins."""

    def _row(self, seen: tuple[int, ...]) -> NDArray[np.float64]:
        row = super()._row(seen)
        rest = pending(self.vocabulary.decode(seen))
        if rest:
            row = row.copy()
            row[[i for i, t in enumerate(self.vocabulary.tokens) if _goes_on(rest, t)]] += _BOOST
            row -= np.logaddexp.reduce(row)
        return row


def _goes_on(rest: bytes, token: bytes) -> bool:
    try:
        return bool(token) and bool((rest + token).decode())
    except UnicodeDecodeError as error:
        return error.end == len(rest + token) and error.reason == "unexpected end of data"


@dataclass
class SyntheticSpeaker:
    """Reads a text as its tokenizer does, from the beginning each time; `asked` is what was sent.

    A chat is its messages' contents.
    """

    model: Synthetic
    continues: str = "text"

    def __post_init__(self) -> None:
        self.asked: list[tuple[str, int]] = []

    @property
    def capabilities(self) -> Capabilities:
        return replace(self.model.capabilities, continues=self.continues)

    @property
    def identity(self) -> tuple[str, ...]:
        return self.model.identity

    async def ask(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        return await self.model.draft(self._prefix(prompt, said, n), n, budget, sampled)

    async def draws(
        self, prompt: str | Chat, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        return await self.model.draws(self._prefix(prompt, "", n), n, budget, choices)

    async def stream(
        self, prompt: str | Chat, said: str, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        run = self.model.stream(self._prefix(prompt, said, n), n, budget, sampled)
        async with aclosing(run) as pieces:
            async for piece in pieces:
                yield piece

    async def close(self) -> None:
        pass

    def _prefix(self, prompt: str | Chat, said: str, n: int) -> Prefix:
        if isinstance(prompt, Chat):
            prompt = "".join(message.content for message in prompt.messages)
        self.asked.append((prompt + said, n))
        return Prefix.of(self.model.vocabulary.encode((prompt + said).encode()))
