"""The slow, obvious twin of the bridge: brute force, and the fast rule without tree or sets.

For tests on small vocabularies. A model is a function from the pair ids read so far to the
probabilities of all ids as the next one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenizer_maps.bridge import FLOOR, LOOKBACK, Clamp, Context, Offsets
from tokenizer_maps.vocabulary import Vocabulary

Ids = tuple[int, ...]
Model = Callable[[Ids], Sequence[float]]


@dataclass(frozen=True, eq=False)
class Oracle:
    """What one model of the pair thinks of the upstream's tokens. ``ends`` are its stop ids."""

    model: Model
    upstream: Vocabulary
    pair: Vocabulary
    ends: frozenset[int]

    def prefix_mass(self, fixed: Ids, text: bytes) -> float:
        """P(the bytes after ``fixed`` start with ``text``), over every way to spell it."""
        return sum(math.exp(self.log_path(fixed, path)) for path in self._covers(text))

    def event_mass(self, fixed: Ids, text: bytes, candidate: int, depth: int) -> float:
        """P(the bytes start with ``text``, and the upstream's token after it is ``candidate``).

        Enumerates what the model may write up to ``depth`` bytes past ``text``; exact where the
        later bytes no longer change the upstream's tokens there.
        """
        total = 0.0
        todo: list[tuple[Ids, bytes, float]] = [((), b"", 1.0)]
        while todo:
            path, written, mass = todo.pop()
            if len(written) >= len(text) + depth:
                total += mass * (self.token_at(written, len(text)) == candidate)
                continue
            chances = self.model(fixed + path)
            if len(written) >= len(text):
                hit = self.token_at(written, len(text)) == candidate
                total += mass * hit * sum(chances[t] for t in self.ends)
            for t, grown in self._continuations(written, text):
                if chances[t] > 0:
                    todo.append(((*path, t), grown, mass * chances[t]))
        return total

    def fast_score(self, context: Context, candidate: int, floor: float = FLOOR) -> float:
        """ln(E + floor) − ln Z of a text candidate or an END, by the fast rule."""
        mass = self.fast_mass(context, candidate)
        return (math.log(mass + floor) if mass + floor else -math.inf) - math.log(
            self.context_mass(context)
        )

    def fast_mass(self, context: Context, candidate: int) -> float:
        """E of a text candidate or an END, where the canonical path of the text weighs 1."""
        at_end = self.model(context.fixed + self.pair.encode(self.text(context)))
        if candidate in self.upstream.end:
            return sum(at_end[t] for t in self.ends)
        terms = list(self._event_terms(context, candidate))
        return math.fsum(terms) if terms else at_end[self._first(candidate)]

    def is_multi(self, context: Context, candidate: int) -> bool:
        """Whether no single pair token reaches the text candidate."""
        return not any(True for _ in self._event_terms(context, candidate))

    def context_mass(self, context: Context) -> float:
        """Z: the mass of the text, where its canonical path weighs 1."""
        return 1.0 + sum(
            weight * self.model(path)[t]
            for weight, rest, path in self._heads(context)
            for t in self._beginning_with(rest)
            if rest and len(self.pair.tokens[t]) > len(rest)
        )

    def text(self, context: Context) -> bytes:
        """The text of a context."""
        return context.prompt + self.upstream.decode(context.generated)

    def token_at(self, text: bytes, start: int) -> int | None:
        """The upstream token that begins at byte ``start`` of ``text``."""
        ids = self.upstream.encode(text)
        lengths = [len(self.upstream.decode(ids[:n])) for n in range(len(ids))]
        return ids[lengths.index(start)] if start in lengths else None

    def log_path(self, fixed: Ids, path: Ids) -> float:
        """log P(path | fixed), in nats."""
        chances = [self.model(fixed + path[:n])[token] for n, token in enumerate(path)]
        return math.fsum(map(math.log, chances)) if all(chances) else -math.inf

    def _covers(self, text: bytes) -> Iterator[Ids]:
        """All token sequences that spell ``text``, the last one perhaps going beyond it."""
        todo: list[tuple[Ids, bytes]] = [((), text)]
        while todo:
            path, rest = todo.pop()
            if not rest:
                yield path
                continue
            for t, token in enumerate(self.pair.tokens):
                if token and (rest.startswith(token) or token.startswith(rest)):
                    todo.append(((*path, t), rest[len(token) :]))

    def _continuations(self, written: bytes, text: bytes) -> Iterator[tuple[int, bytes]]:
        """The tokens that may follow if all must agree with ``text`` as far as both go."""
        for t, token in enumerate(self.pair.tokens):
            grown = written + token
            if token and (grown.startswith(text) or text.startswith(grown)) and t not in self.ends:
                yield t, grown

    def _heads(self, context: Context) -> list[tuple[float, bytes, Ids]]:
        """(weight, rest, path) of every cut whose rest is empty or extended by some token."""
        text, fixed = self.text(context), context.fixed
        end = fixed + self.pair.encode(text)
        heads = []
        for cut in range(len(text) + 1):
            path, rest = fixed + self.pair.encode(text[:cut]), text[cut:]
            longer = any(len(self.pair.tokens[t]) > len(rest) for t in self._beginning_with(rest))
            if (longer or not rest) and path[:1] == end[:1]:
                log_weight = self.log_path(path[:1], path[1:]) - self.log_path(end[:1], end[1:])
                heads.append((math.exp(log_weight), rest, path))
        return heads

    def _beginning_with(self, prefix: bytes) -> list[int]:
        return [t for t, token in enumerate(self.pair.tokens) if token.startswith(prefix) and token]

    def _event_terms(self, context: Context, candidate: int) -> Iterator[float]:
        text = self.text(context)
        start = self._boundary(context, [rest for _, rest, _ in self._heads(context)])
        for weight, rest, path in self._heads(context):
            if not rest:
                yield from (self.model(path)[t] for t in self._begun[candidate])
                continue
            before = text[start : len(text) - len(rest)]
            for t in self._beginning_with(rest + self.upstream.tokens[candidate]):
                if self.token_at(before + self.pair.tokens[t], len(text) - start) == candidate:
                    yield weight * self.model(path)[t]

    def _boundary(self, context: Context, rests: list[bytes]) -> int:
        """The last upstream boundary far enough before the end of the text, else its start."""
        ids = self.upstream.encode(context.prompt) + context.generated
        cuts = [len(self.upstream.decode(ids[:n])) for n in range(len(ids) + 1)]
        latest = cuts[-1] - max([LOOKBACK, *map(len, rests)])
        return max((cut for cut in cuts if cut <= latest), default=0)

    @cached_property
    def _begun(self) -> list[list[int]]:
        """By upstream id: the pair tokens whose own upstream encoding starts with it."""
        rows: list[list[int]] = [[] for _ in self.upstream.tokens]
        for t, token in enumerate(self.pair.tokens):
            for first in self.upstream.encode(token)[:1]:
                rows[first].append(t)
        return rows

    def _first(self, candidate: int) -> int:
        return self.pair.encode(self.upstream.tokens[candidate])[0]


def fast_offsets(
    expert: Oracle,
    antiexpert: Oracle,
    context: Context,
    candidates: Sequence[int],
    clamp: Clamp,
    floor: float = FLOOR,
) -> Offsets:
    """What FastBridge must answer, candidate by candidate."""
    upstream, rows = expert.upstream, []
    for c in candidates:
        is_end = c in upstream.end and bool(expert.ends)
        if not is_end and (c < 0 or not upstream.spells(c) or c in upstream.end):
            rows.append((0.0, True, False, False))
            continue
        scores = [oracle.fast_score(context, c, floor) for oracle in (expert, antiexpert)]
        delta = 0.0 if scores[0] == scores[1] else scores[0] - scores[1]
        limit = clamp.end if is_end else clamp.offset
        multi = not is_end and expert.is_multi(context, c)
        rows.append((max(-limit, min(limit, delta)), False, multi, abs(delta) > limit))
    delta_, *flags = zip(*rows, strict=True)
    return Offsets(np.array(delta_), *(np.array(flag) for flag in flags))
