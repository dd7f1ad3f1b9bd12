"""A scriptable exact upstream, in process: every prefix has a distribution that can be asked for.

For tests of invariance and of distributions, which need thousands of calls and no rounding.
"""

import asyncio
import hashlib
from collections.abc import AsyncGenerator, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from adapter.candidates import END, Draft, Position, Usage, make_position
from adapter.prefix import Prefix
from adapter.upstream.capabilities import Capabilities
from adapter.upstream.tokens import TokenNames
from adapter.upstream.upstream import Allowance
from tokenizer_maps.vocabulary import Kind, Vocabulary, fingerprint

_MEMORY = 3
"""How many ids back the language model sees."""


def vocabulary_of_words(*words: bytes) -> Vocabulary:
    """END at id 0, then the words; text is cut into the longest word each time."""
    tokens = (b"", *words)
    kinds = (Kind.SPECIAL, *[Kind.BYTE] * len(words))
    by_length = sorted(range(1, len(tokens)), key=lambda i: -len(tokens[i]))

    def encode(data: bytes) -> list[int]:
        ids, at = [], 0
        while at < len(data):
            found = next((i for i in by_length if data.startswith(tokens[i], at)), None)
            at += 1 if found is None else len(tokens[found])
            ids += [] if found is None else [found]
        return ids

    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        specials={"<|end|>": 0},
        start=(),
        end=frozenset({0}),
        fingerprint=fingerprint(tokens, kinds, "longest word"),
        chat_template=None,
        encoder=encode,
    )


def vocabulary_of_size(size: int) -> Vocabulary:
    """END and `size - 1` words: letters, then halves of characters, then longer words."""
    letters = [bytes([b]) for b in b"abcdefghijklmnopqrstuvwxyz "[: size // 3]]
    halves = [b"\xc3", b"\xa9", b"\xe2\x82", b"\xac"]
    words = [*letters, *halves, *[b"w%d" % i for i in range(size)]]
    return vocabulary_of_words(*words[: size - 1])


@dataclass
class Synthetic:
    """An upstream over a language model that is a hash of the last few ids.

    `k` candidates are shown (None: all), END among them or hidden. Sampled runs differ from call
    to call, by `luck`. `calls`, `billed` tokens and `cuts` (streams closed early) are counted.
    Two ways to be wrong, for canaries: `appends`, the sampled token is a candidate beyond k;
    `temperature`, at which it is sampled whatever the log-probabilities say.
    """

    vocabulary: Vocabulary
    k: int | None = None
    seed: int = 0
    sharpness: float = 2.0
    end_logit: float = -2.0
    end_visible: bool = True
    latency: float = 0.0
    luck: int = 0
    appends: bool = False
    temperature: float = 1.0
    scoring: Literal["chosen", "forced"] | None = "chosen"
    text_scoring: Literal["echo", "forced", "none"] = "echo"
    several: bool = False
    calls: int = 0
    billed: int = 0
    cuts: int = 0
    _rows: dict[tuple[int, ...], NDArray[np.float64]] = field(default_factory=dict)

    @property
    def capabilities(self) -> Capabilities:
        return Capabilities(
            end_visible=self.end_visible,
            every_step_shown=True,
            rejection=True,
            scoring=self.scoring,
            streams=True,
            margin=1e-6,
            text_scoring=self.text_scoring,
            several=self.several,
        )

    @property
    def identity(self) -> tuple[str, ...]:
        shown = (self.k, self.seed, self.sharpness, self.end_logit, self.end_visible)
        return ("synthetic", self.vocabulary.fingerprint, *map(str, shown))

    def logprobs(self, ids: Sequence[int]) -> NDArray[np.float64]:
        """The log-probability of every id behind `ids`; -inf for those that stand for nothing."""
        seen = tuple(ids[-_MEMORY:])
        row = self._rows.get(seen)
        if row is None:
            row = self._rows[seen] = self._row(seen)
        return row

    async def draft(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> Draft:
        positions: tuple[Position, ...] = ()
        finish, usage = None, Usage()
        async for piece in self.stream(prefix, n, budget, sampled):
            positions += piece.positions
            finish, usage = piece.finish_reason, usage + piece.usage
        return Draft(positions, finish, usage)

    async def draws(
        self, prefix: Prefix, n: int, budget: Allowance, choices: int
    ) -> tuple[Draft, ...]:
        async with budget.call(len(prefix.ids), n * choices):
            usage = self._call(prefix)
            await asyncio.sleep(self.latency)
            runs = [list(self._run(list(prefix.ids), n, True)) for _ in range(choices)]
        made = sum(map(len, runs))
        self.billed += made
        shown = [tuple(p for p, _ in run if p is not None) for run in runs]
        first, *others = (Draft(s, r[-1][1], Usage()) for s, r in zip(shown, runs, strict=True))
        return (replace(first, usage=usage + Usage(completion_tokens=made)), *others)

    async def stream(
        self, prefix: Prefix, n: int, budget: Allowance, sampled: bool = False
    ) -> AsyncGenerator[Draft, None]:
        async with budget.call(len(prefix.ids), n):
            usage, whole = self._call(prefix), False
            await asyncio.sleep(self.latency)
            try:
                for position, finish in self._run(list(prefix.ids), n, sampled):
                    self.billed += 1
                    shown = () if position is None else (position,)
                    whole = finish is not None
                    yield Draft(shown, finish, usage + Usage(completion_tokens=1))
                    usage = Usage()
            finally:
                self.cuts += not whole

    async def score(
        self, prefix: Prefix, ids: Sequence[int], budget: Allowance
    ) -> tuple[dict[int, float], Usage]:
        async with budget.call(len(prefix.ids), 1):
            usage = self._call(prefix) + Usage(completion_tokens=1)
            self.billed += 1
            await asyncio.sleep(self.latency)
        row = self.logprobs(prefix.ids)
        known = [i for i in ids if 0 <= i < len(row) and np.isfinite(row[i])]
        return {i: float(row[i]) for i in known}, usage

    async def positions(self, ids: Sequence[int], budget: Allowance) -> Draft:
        async with budget.call(len(ids), 1):
            usage = self._call(Prefix.of(ids)) + Usage(completion_tokens=1)
            self.billed += 1
        rows = [self.logprobs(ids[: j + 1]) for j in range(len(ids))]
        taken = [*ids[1:], int(rows[-1].argmax())]
        found = (self._position(row, token) for row, token in zip(rows, taken, strict=True))
        return Draft(tuple(found), None, usage)

    async def close(self) -> None:
        pass

    def _call(self, prefix: Prefix) -> Usage:
        self.calls += 1
        self.billed += len(prefix.ids)
        return Usage(calls=1, prompt_tokens=len(prefix.ids))

    def _run(
        self, ids: list[int], n: int, sampled: bool
    ) -> Iterator[tuple[Position | None, str | None]]:
        """Each position, None for an END that is hidden, and with the last why it is the last."""
        for left in range(n, 0, -1):
            row = self.logprobs(ids)
            token = self._draw(row) if sampled else int(row.argmax())
            ends = token in self.vocabulary.end
            position = self._position(row, token) if self.end_visible or not ends else None
            yield position, "stop" if ends else "length" if left == 1 else None
            if ends:
                return
            ids.append(token)

    def _position(self, row: NDArray[np.float64], token: int) -> Position:
        order = [int(i) for i in np.argsort(-row, kind="stable") if np.isfinite(row[i])]
        listed = [self._names.of_id(i, float(row[i])) for i in order]
        shown = [c for c in listed if self.end_visible or (c and c.special != END)][: self.k]
        drafted = listed[order.index(token)]
        if self.appends and drafted not in shown:
            shown.append(drafted)
        # A hidden END may be likelier than what is shown: as good as lost.
        lost = [] if self.end_visible else [None]
        return make_position([*shown, *lost], drafted, self._names.size)

    def _draw(self, row: NDArray[np.float64]) -> int:
        heated = np.exp((row - row.max()) / self.temperature)
        return int(self._luck.choice(len(row), p=heated / heated.sum()))

    def _row(self, seen: tuple[int, ...]) -> NDArray[np.float64]:
        digest = hashlib.blake2b(repr((self.seed, seen)).encode(), digest_size=8).digest()
        rng = np.random.default_rng(int.from_bytes(digest))
        logits = self.sharpness * rng.standard_normal(len(self.vocabulary.tokens))
        logits[list(self.vocabulary.end)] = self.end_logit
        dead = {i for i, kind in enumerate(self.vocabulary.kinds) if kind >= Kind.SPECIAL}
        dead -= self.vocabulary.end
        logits[list(dead)] = -np.inf
        return logits - np.logaddexp.reduce(logits)

    @cached_property
    def _names(self) -> TokenNames:
        return TokenNames(self.vocabulary)

    @cached_property
    def _luck(self) -> np.random.Generator:
        return np.random.default_rng(self.luck)
