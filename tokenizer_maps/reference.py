"""The slow, obvious twin of the bridge: brute force, and the fast rule without tree or sets.

For tests on small vocabularies. A model is a function from the pair ids read so far to the
probabilities of all ids as the next one.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np

from tokenizer_maps.canonical import LOOKBACK, PROBES
from tokenizer_maps.fast import FLOOR
from tokenizer_maps.steps import Clamp, Context, Offsets
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

    def prefix_mass(self, fixed: Ids, text: bytes, canonical: bool = False) -> float:
        """P(the bytes after ``fixed`` start with ``text``), over every way to spell it.

        Or over those alone that are the canonical tokens of what they spell.
        """
        paths = self._covers(text)
        kept = (path for path in paths if not canonical or self._is_canonical(path))
        return math.fsum(math.exp(self.log_path(fixed, path)) for path in kept)

    def prefix_bounds(
        self, fixed: Ids, text: bytes, ahead: bytes, epsilon: float = 0.0, canonical: bool = False
    ) -> tuple[float, float]:
        """Bounds of P(``text`` + ``ahead``), by heads and recursion, where nodes up to ε are cut.

        Paths are canonical up to the text's end, and after it too if ``canonical``.
        """
        low = pruned = 0.0
        least = epsilon * self.context_mass_of(fixed, text, canonical)
        todo: list[tuple[Ids, bytes, float, int]] = [
            (path, rest + ahead, math.exp(self.log_path(fixed, path)), len(rest))
            for rest, path in self._cuts(text)
        ]
        while todo:
            path, rest, mass, inside = todo.pop()
            if not inside and mass <= least:
                pruned += mass
                continue
            chances = self.model(fixed + path)
            for t, token in self._texts:
                if len(token) <= inside or (canonical and not self._is_canonical((*path, t))):
                    continue  # what ends inside the text belongs to another head
                if token.startswith(rest):
                    low += mass * chances[t]
                elif rest.startswith(token):
                    todo.append(((*path, t), rest[len(token) :], mass * chances[t], 0))
        return low, low + pruned

    def context_mass_of(self, fixed: Ids, text: bytes, canonical: bool) -> float:
        """P(``text``) by heads: canonical paths up to its end, and beyond if ``canonical``."""
        total = 0.0
        for rest, path in self._cuts(text):
            weight, chances = math.exp(self.log_path(fixed, path)), self.model(fixed + path)
            total += weight if not rest else 0.0
            for t, token in self._texts if rest else ():
                longer = token.startswith(rest) and token != rest
                if longer and not (canonical and not self._is_canonical((*path, t))):
                    total += weight * chances[t]
        return total

    def event_mass(self, fixed: Ids, text: bytes, candidate: int, depth: int) -> float:
        """P(the bytes start with ``text``, and the upstream's token after it is ``candidate``).

        Enumerates what the model may write up to ``depth`` bytes past ``text``; exact where the
        later bytes no longer change the upstream's tokens there.
        """
        return self._mass_where(lambda token: token == candidate, fixed, text, depth)

    def boundary_mass(self, fixed: Ids, text: bytes, depth: int) -> float:
        """P(the bytes start with ``text``, and some upstream token begins after it)."""
        return self._mass_where(lambda token: token is not None, fixed, text, depth)

    def _mass_where(
        self, hit: Callable[[int | None], bool], fixed: Ids, text: bytes, depth: int
    ) -> float:
        total = 0.0
        todo: list[tuple[Ids, bytes, float]] = [((), b"", 1.0)]
        while todo:
            path, written, mass = todo.pop()
            if len(written) >= len(text) + depth:
                total += mass * hit(self.token_at(written, len(text)))
                continue
            chances = self.model(fixed + path)
            if len(written) >= len(text):
                here = hit(self.token_at(written, len(text)))
                total += mass * here * sum(chances[t] for t in self.ends)
            for t, grown in self._continuations(written, text):
                if chances[t] > 0:
                    todo.append(((*path, t), grown, mass * chances[t]))
        return total

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

    def context_mass(self, context: Context, candidates: Sequence[int]) -> float:
        """Z: the mass of the text with an upstream boundary at its end.

        Its canonical path weighs 1. Beside the paths that end there: what spans the end for a
        candidate.
        """
        ending = sum(weight for weight, rest, _ in self._heads(context) if not rest)
        texts = {c for c in candidates if self._is_text(c)}
        return ending + math.fsum(term for c in texts for term in self._spanning_terms(context, c))

    def exact_masses(
        self, context: Context, candidates: Sequence[int], moving: bool = True
    ) -> list[float]:
        """E of text candidates where every path is followed until it can be no longer candidate.

        The canonical path of the text weighs 1. A path is then the upstream's token for what it
        spells after the text if it got to a candidate's end, else for what it had spelt before.
        Not ``moving``, it stays that of its beginning as well: the rule's rival.
        """
        texts = [self.upstream.tokens[c] for c in candidates]
        masses: dict[int | None, float] = {}
        text = self.text(context)
        heads = self._heads(context)
        start = self._boundary(context, [rest for _, rest, _ in heads])
        todo: list[tuple[bool, Ids, bytes, float]] = []
        for weight, rest, path in heads:
            chances = self.model(path)
            for t in self._beginning_with(rest):
                if rest and not self._is_written(context, rest, t):
                    continue
                spelt = self.pair.tokens[t][len(rest) :]
                if spelt:
                    todo.append((not rest, (*path, t), spelt, weight * chances[t]))
        while todo:
            at_end, path, spelt, mass = todo.pop()
            before, at = (b"", 0) if at_end else (text[start:], len(text) - start)
            longer = [one for one in texts if one.startswith(spelt) and one != spelt]
            left, chances = mass, self.model(path) if longer and mass else []
            for t, token in self._texts if len(chances) else []:
                grown, part = spelt + token, mass * chances[t]
                if any(one.startswith(grown) or grown.startswith(one) for one in longer):
                    todo.append((at_end, (*path, t), grown, part))
                    left -= part
            verdict = self.token_at(before + spelt, at)
            masses[verdict] = masses.get(verdict, 0.0) + (max(left, 0.0) if moving else mass)
        return [masses.get(c, 0.0) for c in candidates]

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

    def _is_canonical(self, path: Ids) -> bool:
        return self.pair.encode(self.pair.decode(path)) == path

    def _cuts(self, text: bytes) -> Iterator[tuple[bytes, Ids]]:
        """(rest, canonical path of the text before it), wherever a token may go beyond the rest."""
        for cut in range(len(text) + 1):
            rest = text[cut:]
            longer = any(len(self.pair.tokens[t]) > len(rest) for t in self._beginning_with(rest))
            if longer or not rest:
                yield rest, self.pair.encode(text[:cut])

    @cached_property
    def _texts(self) -> list[tuple[int, bytes]]:
        return [(t, token) for t, token in enumerate(self.pair.tokens) if token]

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
            before, rest = text[:cut], text[cut:]
            longer = any(len(self.pair.tokens[t]) > len(rest) for t in self._beginning_with(rest))
            if not longer and rest:
                continue
            for path in self._spellings(before, rest):
                if (fixed + path)[:1] == end[:1]:
                    whole = fixed + path
                    weight = self.log_path(whole[:1], whole[1:]) - self.log_path(end[:1], end[1:])
                    heads.append((math.exp(weight), rest, whole))
        return heads

    def _spellings(self, text: bytes, rest: bytes) -> list[Ids]:
        """The canonical path of a text, and what it is before its rest, or before a probe."""
        paths = [self.pair.encode(text)]
        blank = text[-8:].decode("utf-8", "ignore")[-2:]
        for after in [*PROBES * (len(blank) > 1 and blank.isspace()), *[rest] * bool(rest)]:
            ids = self.pair.encode(text + after)
            cuts = [n for n in range(len(ids) + 1) if self.pair.decode(ids[:n]) == text]
            paths += [ids[:n] for n in cuts if ids[:n] not in paths]
        return paths

    def _beginning_with(self, prefix: bytes) -> list[int]:
        return [t for t, token in enumerate(self.pair.tokens) if token.startswith(prefix) and token]

    def _event_terms(self, context: Context, candidate: int) -> Iterator[float]:
        for weight, rest, path in self._heads(context):
            if not rest:
                yield from (weight * self.model(path)[t] for t in self._begun[candidate])
        yield from self._spanning_terms(context, candidate)

    def _spanning_terms(self, context: Context, candidate: int) -> Iterator[float]:
        """Tokens that spell the rest of the text, then the candidate, which the upstream has."""
        text = self.text(context)
        start = self._boundary(context, [rest for _, rest, _ in self._heads(context)])
        for weight, rest, path in self._heads(context):
            before = text[start : len(text) - len(rest)]
            for t in self._beginning_with(rest + self.upstream.tokens[candidate]) if rest else ():
                found = self.token_at(before + self.pair.tokens[t], len(text) - start)
                if found == candidate and self._is_written(context, rest, t):
                    yield weight * self.model(path)[t]

    def _is_written(self, context: Context, rest: bytes, token: int) -> bool:
        """Whether the pair's tokenizer itself writes ``token`` before the rest of the text."""
        text = self.text(context)
        whole = text[: len(text) - len(rest)] + self.pair.tokens[token]
        return self.pair.encode(whole)[-1:] == (token,)

    def _is_text(self, candidate: int) -> bool:
        return (
            0 <= candidate < len(self.upstream.tokens)
            and self.upstream.spells(candidate)
            and candidate not in self.upstream.end
        )

    def _boundary(self, context: Context, rests: list[bytes]) -> int:
        """The last upstream boundary far enough before the end of the text, else its start."""
        ids = self.upstream.encode(context.prompt) + context.generated
        cuts = [len(self.upstream.decode(ids[:n])) for n in range(len(ids) + 1)]
        latest = cuts[-1] - max([LOOKBACK, *map(len, rests)])
        whole = self.text(context)
        while latest >= 0:
            at = max(n for n, cut in enumerate(cuts) if cut <= latest)
            if self.upstream.encode(whole[cuts[at] :])[:1] == ids[at : at + 1]:
                return cuts[at]
            latest = cuts[-1] - 2 * (cuts[-1] - cuts[at])
        return 0

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
    upstream, oracles = expert.upstream, (expert, antiexpert)
    rows, logs = [], [math.log(one.context_mass(context, candidates)) for one in oracles]
    for c in candidates:
        is_end = c in upstream.end and bool(expert.ends)
        if not is_end and not expert._is_text(c):
            rows.append((0.0, True, False, False, False))
            continue
        masses = [oracle.fast_mass(context, c) + floor for oracle in oracles]
        scores = [math.log(m) - z if m else -math.inf for m, z in zip(masses, logs, strict=True)]
        delta = 0.0 if scores[0] == scores[1] else scores[0] - scores[1]
        limit = clamp.end if is_end else clamp.offset
        multi = not is_end and expert.is_multi(context, c)
        rows.append((max(-limit, min(limit, delta)), False, multi, abs(delta) > limit, False))
    delta_, *flags = zip(*rows, strict=True)
    return Offsets(np.array(delta_), *(np.array(flag) for flag in flags))
