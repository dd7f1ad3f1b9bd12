"""Vocabularies by hand, allowances, recorded answers: what tests of upstreams share."""

import json
from collections.abc import Mapping
from functools import cache
from pathlib import Path
from typing import Any

from hypothesis import HealthCheck, settings

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


class Allowed:
    """An allowance of so many calls, which counts them."""

    def __init__(self, calls: int = 1000) -> None:
        self.left = calls
        self.taken = 0

    def take(self) -> None:
        if self.left == 0:
            raise BudgetExceeded("no call is left")
        self.left -= 1
        self.taken += 1


@cache
def _samples(server: str) -> dict[str, Any]:
    return json.loads((Path(__file__).parent / "samples" / f"{server}.json").read_text("utf-8"))


def sample(server: str, case: str) -> dict[str, Any]:
    """A recorded answer of a real server: `request`, `status`, `response`."""
    return _samples(server)[case]
