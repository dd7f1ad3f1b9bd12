"""Offsets where nobody knows the upstream's vocabulary: its tokens are taken to end as words do."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache
from pathlib import Path

import numpy as np

from tokenizer_maps.fast import FastBridge
from tokenizer_maps.map import open_map
from tokenizer_maps.steps import (
    Clamp,
    Context,
    Masses,
    Offsets,
    Plan,
    Reading,
    Rows,
    Sets,
    Survey,
    Whole,
)
from tokenizer_maps.sums import Sums
from tokenizer_maps.vocabulary import Vocabulary

END = b""
"""The candidate that ends the text."""


@dataclass(frozen=True, eq=False)
class WordBridge:
    """Steps as a Bridge's, for candidates given by their bytes: ``END``, None where unknown.

    A pair token counts for c if it spells c, or goes on with another class of characters after c.
    The whole text of a context stands in ``prompt``; its ``generated`` is empty. No survey: nobody
    can name the hidden tokens of an unknown vocabulary, so nothing is ever imputed.
    """

    fast: FastBridge
    """Of the pair's vocabulary with itself: the steps that do not depend on the candidates."""

    @classmethod
    def open(
        cls, pair: Vocabulary, pair_end: frozenset[int], maps: Path, clamp: Clamp
    ) -> "WordBridge":
        """The bridge for a pair alone; MapError where its map cannot be written."""
        return cls(FastBridge(open_map(maps, pair, pair), pair_end, clamp))

    def plan(self, context: Context) -> Plan:
        return self.fast.plan(context)

    def sets(
        self,
        plan: Plan,
        candidates: Sequence[bytes | None],
        chances: Sequence[float] | None = None,
    ) -> Sets:
        sums, pair_end = Sums(), sorted(self.fast.pair_end)
        end, multi = np.zeros((2, len(candidates)), np.bool_)
        for number, candidate in enumerate(candidates):
            if candidate == END and pair_end:
                end[number] = True
                sums.part(plan.heads[0].node, pair_end, number)
            elif candidate and not self._reach(plan, sums, number, candidate):
                first = self.fast.encoder.piece(candidate)[:1]
                multi[number] = bool(first)
                if first:
                    sums.part(plan.heads[0].node, first, number)
        self._add_context(plan, sums, candidates)
        return Sets(**sums.columns(), end=end, multi=multi, capped=np.zeros_like(end))

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        return None

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        return self.fast.reading(plan, sets, masses)

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        return self.fast.offsets(expert, antiexpert)

    def _reach(self, plan: Plan, sums: Sums, number: int, candidate: bytes) -> bool:
        reached = False
        for head in plan.heads:
            ids = self._ending(head.rest + candidate)
            if ids:
                sums.part(head.node, ids, number)
                reached = True
        return reached

    def _add_context(self, plan: Plan, sums: Sums, candidates: Sequence[bytes | None]) -> None:
        """At heads with a rest: the tokens of all candidates, each once, however many it ends."""
        texts = [candidate for candidate in candidates if candidate]
        for head in plan.heads:
            ids = {t for text in texts for t in self._ending(head.rest + text) if head.rest}
            if ids:
                sums.part(head.node, sorted(ids), len(candidates))

    @cached_property
    def _ending(self) -> Callable[[bytes], list[int]]:
        """The pair tokens that spell a text and have a word's end, or their own, behind it."""
        token_map = self.fast.map
        tokens = token_map.pair.tokens

        def ending(text: bytes) -> list[int]:
            low, high = token_map.span(text)
            ids = token_map.order[low:high].tolist()
            return [t for t in ids if ends_word(tokens[t], len(text))]

        return lru_cache(1 << 12)(ending)


@dataclass(frozen=True, eq=False)
class SpeltBridge:
    """A WordBridge as a Bridge, for tokens by ids of our own: ``spellings`` has their bytes.

    An id has to be among them before it is asked about. There is no survey of hidden tokens.
    """

    words: WordBridge
    spellings: Mapping[int, bytes]

    def plan(self, context: Context) -> Plan:
        text = b"".join([self.spellings[i] for i in context.generated])
        return self.words.plan(Context(context.fixed, context.prompt + text, ()))

    def sets(
        self, plan: Plan, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Sets:
        return self.words.sets(plan, [self.spellings.get(i) for i in candidates], chances)

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        return self.words.deeper(plan, sets, masses)

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        return self.words.reading(plan, sets, masses)

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        return self.words.offsets(expert, antiexpert)

    def surveyed(self, plan: Plan) -> tuple[int, ...]:
        raise RuntimeError(_NO_SURVEY)

    def survey(self, plan: Plan, rows: Rows) -> Survey:
        raise RuntimeError(_NO_SURVEY)

    def whole(self, expert: Survey, antiexpert: Survey) -> Whole:
        raise RuntimeError(_NO_SURVEY)


_NO_SURVEY = "the hidden tokens of an unknown vocabulary cannot be surveyed"


def ends_word(token: bytes, at: int) -> bool:
    """Whether letters, digits, white space or other characters end at byte ``at`` of ``token``."""
    if at == len(token):
        return True
    if token[at] & 0xC0 == 0x80:  # inside a character
        return False
    return _kind(token[:at].decode("utf-8", "ignore")[-1:]) != _kind(
        token[at:].decode("utf-8", "ignore")[:1]
    )


def _kind(character: str) -> int:
    """Letters and pieces of characters 0, digits 1, white space 2, all else 3."""
    if not character or character.isalpha():
        return 0
    return 1 if character.isnumeric() else 2 if character.isspace() else 3
