"""Vocabularies by hand, allowances, recorded answers: what tests of upstreams share."""

import json
from collections.abc import AsyncIterator, Mapping
from contextlib import asynccontextmanager
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

from adapter.candidates import Usage
from adapter.errors import BudgetExceeded
from tokenizer_maps.vocabulary import Kind, Vocabulary

thorough = settings(max_examples=300, deadline=None, suppress_health_check=[HealthCheck.too_slow])
"""For properties over junk; a busy machine is no failure."""


def vocabulary_of(
    tokens: Mapping[int, bytes],
    specials: Mapping[str, int] | None = None,
    end: frozenset[int] = frozenset(),
) -> Vocabulary:
    """A vocabulary with just these tokens and specials; all other ids are gaps."""
    specials = specials or {}
    size = max([*tokens, *specials.values()]) + 1
    kinds = [Kind.BYTE if i in tokens else Kind.NONE for i in range(size)]
    for i in specials.values():
        kinds[i] = Kind.SPECIAL
    return Vocabulary(
        tokens=tuple(tokens.get(i, b"") for i in range(size)),
        kinds=tuple(kinds),
        specials=specials,
        start=(),
        end=end,
        fingerprint="by hand",
        chat_template=None,
        encoder=lambda _: (),
    )


BYTES = vocabulary_of(
    {i + 2: bytes([i]) for i in range(256)},
    {"<|end|>": 0, "<|user|>": 1},
    frozenset({0}),
)
"""One token a byte, byte b at id b + 2; 0 is END, 1 a special token."""


class Attempt:
    """A call that remembers what was reserved for it and what it said; None until it says."""

    def __init__(self, prompt_tokens: int, output_tokens: int) -> None:
        self.prompt_tokens, self.tokens = prompt_tokens, output_tokens
        self.usage: Usage | None = None
        self.estimated = True

    async def more(self, output_tokens: int, least: int | None = None) -> None:
        self.tokens = output_tokens

    def settle(self, usage: Usage, estimated: bool = False) -> None:
        self.usage, self.estimated = usage, estimated


class Allowed:
    """An allowance of so many calls, which counts and keeps them."""

    def __init__(self, calls: int = 1000) -> None:
        self.left = calls
        self.attempts: list[Attempt] = []

    @property
    def taken(self) -> int:
        return len(self.attempts)

    @asynccontextmanager
    async def call(self, prompt_tokens: int, output_tokens: int) -> AsyncIterator[Attempt]:
        if self.left == 0:
            raise BudgetExceeded("no call is left")
        self.left -= 1
        self.attempts.append(Attempt(prompt_tokens, output_tokens))
        yield self.attempts[-1]


@cache
def _samples(server: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "samples" / f"{server}.json").read_text("utf-8"))


def sample(server: str, case: str) -> dict[str, Any]:
    """A recorded answer of a real server: `request`, `status`, `response`."""
    return _samples(server)[case]
