"""Offsets across two tokenizers from one pass over a small tree.

A candidate c is the event "the upstream's next token is c". At the end of the text a pair token
counts for c if its own upstream encoding starts with c. But the pair's tokens need not end where
the text does, so the text is also read up to earlier cuts; a **head** is one such reading, with the
``rest`` of the text still to be produced, and there a pair token counts for c if it spells the
rest, then c, the upstream really has c there, and the pair's tokenizer would really write it there.

A score is ln(E + η) − ln Z. Z is the mass of the text with an upstream boundary at its end: the
readings that end there too, and what spans that end for some candidate. Not the mass of the text's
bytes: how likely a model finds a boundary here says nothing about the next token, but would shift
all offsets, and the clamp would cut them together. Nor what spans the end for tokens that are no
candidates: to find it, thousands of pair tokens a place would have to be encoded, ten times the
work of all the rest. It would shift all offsets by one constant, thousandths of a nat in English
and code, more where tokens end inside characters; with all tokens as candidates nothing is missing.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from functools import cached_property, lru_cache, partial

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.canonical import LOOKBACK, SHORT, Encoder, Known, Path, alike, anchor
from tokenizer_maps.identity import NOTHING_TO_READ, difference, flags
from tokenizer_maps.map import TokenMap
from tokenizer_maps.steps import (
    Clamp,
    Context,
    Flags,
    Head,
    Ints,
    Masses,
    Offsets,
    Plan,
    Reading,
    Role,
    Rows,
    Sets,
    Survey,
    Tree,
    Whole,
)
from tokenizer_maps.sums import Sums, totals, weights
from tokenizer_maps.survey import Surveyor, surveyed
from tokenizer_maps.vocabulary import Vocabulary

FLOOR = 1e-6  # η: added to every mass, in units of the mass of the pair's own reading of the text
FAR = 4096  # tokens after which the search for a place to re-read from ends
MANY = 256  # candidates from which on each pair token is looked at once, not each candidate

Texts = dict[int, list[int]]
"""Upstream ids of text candidates, and their numbers among the candidates."""


@dataclass(frozen=True, eq=False)
class FastBridge:
    """For two tokenizers: token events from one pass over a small tree. For one thread.

    ``pair_end``: the ids that end a text for the pair's models; ``floor``: η, added to every mass
    in units of the mass of the end head, so that offsets do not depend on where a trunk is cut.
    """

    map: TokenMap
    pair_end: frozenset[int]
    clamp: Clamp = field(default_factory=Clamp)
    floor: float = FLOOR

    def plan(self, context: Context) -> Plan:
        text = context.prompt + self.map.upstream.decode(context.generated)
        known = self.encoder.encode(text)
        if not context.fixed and not known.ids:
            raise ValueError(NOTHING_TO_READ)
        rests = [b"", *(rest for rest in self._rests(text) if self._extended(rest))]
        tree = grow(context.fixed, known.ids, list(self._readings(known, rests)))
        return Plan(*tree, self._tail(context, text, max(LOOKBACK, *map(len, rests))))

    def sets(
        self, plan: Plan, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Sets:
        ids = self._known(candidates)
        sums, reached = self._events(plan, ids)
        return self._finished(plan, ids, sums, reached)

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        return None

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        """ln(E + η) − ln Z of every candidate, in the scale where the end head weighs 1."""
        paths = weights(plan, masses)
        mass, unit = totals(sets, paths[sets.nodes + 1] + masses.sets)
        scale = math.exp(-unit)
        part, moved, leaving, coming = mass[:, :-1]
        event = np.maximum(part - moved, 0.0)
        whole = [paths[head.node + 1] for head in plan.heads if not head.rest]
        context = math.log(mass[Role.PART, -1] + np.exp(np.array(whole) - unit).sum())

        def score(one: NDArray[np.float64]) -> NDArray[np.float64]:
            with np.errstate(divide="ignore"):
                return np.asarray(np.log(one + self.floor * scale) - context)

        parts = sets.owners[sets.roles == Role.PART]
        return Reading(
            scores=score(event),
            end=sets.end,
            multi=sets.multi,
            unscored=~flags(parts, len(sets.end) + 1)[:-1],
            capped=sets.capped,
            low=score(np.maximum(event - leaving, 0.0)) if sets.bounded else None,
            high=score(event + coming) if sets.bounded else None,
        )

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        # An event that one rendering can only see coarsely is not the other's event.
        unequal = expert.multi != antiexpert.multi
        unscored = expert.unscored | antiexpert.unscored | unequal
        limit = np.where(expert.end, self.clamp.end, self.clamp.offset)

        def held(
            left: NDArray[np.float64] | None, right: NDArray[np.float64] | None
        ) -> NDArray[np.float64] | None:
            if left is None or right is None:
                return None
            return np.clip(np.where(unscored, 0.0, difference(left, right)), -limit, limit)

        delta = np.where(unscored, 0.0, difference(expert.scores, antiexpert.scores))
        return Offsets(
            delta=np.clip(delta, -limit, limit),
            unscored=unscored,
            multi=expert.multi,
            clamped=np.abs(delta) > limit,
            capped=expert.capped | antiexpert.capped,
            low=held(expert.low, antiexpert.high),
            high=held(expert.high, antiexpert.low),
        )

    def surveyed(self, plan: Plan) -> tuple[int, ...]:
        return surveyed(plan)

    def survey(self, plan: Plan, rows: Rows) -> Survey:
        return self._surveyor.survey(plan, rows)

    def whole(self, expert: Survey, antiexpert: Survey) -> Whole:
        return self._surveyor.whole(expert, antiexpert)

    # --- the plan

    def _rests(self, text: bytes) -> Iterator[bytes]:
        """The ends of the text that are no longer than a token that begins like them."""
        for length in range(min(len(text), self.map.longest), 0, -1):
            start = len(text) - length
            if length == 1 or self._longest.get(text[start : start + 2], 0) > length:
                yield text[start:]

    def _extended(self, rest: bytes) -> bool:
        low, high = self.map.beyond(rest)
        return low < high

    def _readings(self, known: Known, rests: Sequence[bytes]) -> Iterator[tuple[bytes, Path]]:
        """(rest, path) of the text before each rest: the canonical one, then what it may become."""
        ends = self.encoder.ends(known, max(map(len, rests)))
        for rest in rests:
            paths = self.encoder.spellings(known, len(known.text) - len(rest))
            at = ends.get(len(rest))
            together = Path(at or 0, ())
            if at is not None and not any(alike(known.ids, together, path) for path in paths):
                paths.append(together)
            yield from ((rest, path) for path in paths)

    def _tail(self, context: Context, text: bytes, least: int) -> bytes:
        """The end of the text from the last upstream boundary on that is far enough back.

        Re-reading from anywhere else finds tokens the upstream does not see.
        """
        ids = context.generated[-FAR:]
        if len(ids) < FAR:
            ids = self._upstream.encode(context.prompt).ids[len(ids) - FAR :] + ids
        return text[-anchor(self.map.upstream, ids, least) :] if text else b""

    # --- the sums

    def _known(self, candidates: Sequence[int]) -> Ints:
        """The candidates' ids, −1 for what the upstream's vocabulary does not hold."""
        ids = np.asarray(candidates, np.int64)
        return np.where((ids >= 0) & (ids < len(self._text) - 1), ids, -1)

    def _texts(self, ids: Ints) -> Texts:
        texts: Texts = {}
        for number in np.flatnonzero(self._text[ids]).tolist():
            texts.setdefault(int(ids[number]), []).append(number)
        return texts

    def _events(self, plan: Plan, ids: Ints) -> tuple[Sums, Flags]:
        """What single pair tokens have to do with the candidates, and whom they reach."""
        sums, numbers = Sums(), np.flatnonzero(self._text[ids])
        self._begun(plan, sums, numbers, ids[numbers])
        reached = np.zeros(len(ids), np.bool_)
        reached[numbers] = self._rows[ids[numbers]] > 0
        for c, found in self._spanning(plan, np.unique(ids[numbers])).items():
            owners = np.flatnonzero(ids == c)
            reached[owners] = True
            for head, tokens in found:
                number = sums.add(head.node, tokens)
                for owner in (*owners.tolist(), len(ids)):
                    sums.use(number, owner, Role.PART)
        return sums, reached

    def _finished(self, plan: Plan, ids: Ints, sums: Sums, reached: Flags) -> Sets:
        """The sums as they are, with what does not depend on how the events were found."""
        first = self.map.first[ids]
        multi = self._text[ids] & ~reached & (first >= 0)
        numbers, node = np.flatnonzero(multi), plan.heads[0].node
        # For what no single token reaches: the first canonical token. A coarser event than c,
        # sound as a ratio of two models, no probability of c.
        sums.parts(node, np.ones_like(numbers), first[numbers], numbers)
        end = self._end[ids]
        for number in np.flatnonzero(end).tolist():
            sums.part(node, self._ends, number)
        return Sets(**sums.columns(), end=end, multi=multi, capped=np.zeros_like(end))

    def _begun(self, plan: Plan, sums: Sums, numbers: Ints, ids: Ints) -> None:
        """At the end of the text: the tokens whose own upstream encoding starts with c."""
        lengths = self._rows[ids]
        some = lengths > 0
        numbers, ids, lengths = numbers[some], ids[some], lengths[some]
        starts = self.map.frt_ptr[ids] - (np.cumsum(lengths) - lengths)
        places = np.repeat(starts, lengths) + np.arange(lengths.sum())
        for head in plan.heads:
            if not head.rest:
                sums.parts(head.node, lengths, self.map.frt_ids[places], numbers)

    def _spanning(self, plan: Plan, ids: Ints) -> dict[int, list[tuple[Head, list[int]]]]:
        """By c, at heads with a rest: tokens that spell it, then c, where the upstream has c."""
        order, texts = self.map.order, self.map.upstream.tokens
        wanted, spanning = set(ids.tolist()), dict[int, list[tuple[Head, list[int]]]]()
        for head in plan.heads:
            if not head.rest:
                continue
            spans = [self.map.beyond(head.rest)]
            if len(ids) < MANY:
                spans = [self._span(head.rest + texts[c]) for c in wanted]
            found: dict[int, list[int]] = {}
            for t in {t for low, high in spans for t in order[low:high].tolist()}:
                c = self._begun_by(plan, head, t)
                if c in wanted and self.writes(plan, head, t):
                    found.setdefault(c, []).append(t)
            for c, some in found.items():
                spanning.setdefault(c, []).append((head, some))
        return spanning

    def writes(self, plan: Plan, head: Head, token: int) -> bool:
        """Whether the pair's tokenizer itself writes a token that spells the rest at its head.

        Models have hardly seen any other there, and what they give it has no meaning.
        """
        before = plan.tail[: len(plan.tail) - len(head.rest)]
        return self.encoder.piece(before + self.map.pair.tokens[token])[-1:] == (token,)

    def _span(self, prefix: bytes) -> tuple[int, int]:
        """The ranks of the pair tokens that start with ``prefix``."""
        if len(prefix) > 1 and self._longest.get(prefix[:2], 0) < len(prefix):
            return 0, 0
        return self.map.span(prefix)

    def _begun_by(self, plan: Plan, head: Head, token: int) -> int:
        """The upstream token a pair token begins that spells a head's rest and more; −1: none."""
        spelt = self.map.pair.tokens[token][len(head.rest) :]
        return self.found_at(plan.tail + spelt, len(plan.tail))

    def _spans(self, plan: Plan, head: Head, token: int) -> int:
        """The upstream token that a pair token begins, if the pair writes it there; −1: none."""
        found = self._begun_by(plan, head, token)
        return found if found >= 0 and self.writes(plan, head, token) else -1

    def found_at(self, text: bytes, start: int) -> int:
        """The upstream token that begins at a byte of a text; −1 where none does."""
        if len(text) > SHORT:
            return _found_at(self.map.upstream, text, start)
        return self._found(text, start)

    @cached_property
    def _found(self) -> Callable[[bytes, int], int]:
        return lru_cache(1 << 15)(partial(_found_at, self.map.upstream))

    @cached_property
    def encoder(self) -> Encoder:
        """The pair's."""
        return Encoder(self.map.pair)

    @cached_property
    def _upstream(self) -> Encoder:
        return Encoder(self.map.upstream)

    @cached_property
    def _surveyor(self) -> Surveyor:
        return Surveyor(self.map, self._ends, self.floor, self.clamp, self._spans)

    @cached_property
    def _longest(self) -> dict[bytes, int]:
        """The length of the longest pair token by its first two bytes."""
        longest: dict[bytes, int] = {}
        for token in self.map.pair.tokens:
            if len(token) > longest.get(token[:2], 1):
                longest[token[:2]] = len(token)
        return longest

    @cached_property
    def _rows(self) -> Ints:
        """By upstream id: how many pair tokens begin with it; 0 at −1."""
        return np.append(np.diff(self.map.frt_ptr), 0).astype(np.int64)

    @cached_property
    def _text(self) -> Flags:
        """By upstream id, and False at −1: a token of text that is no END."""
        upstream = self.map.upstream
        ids = range(len(upstream.tokens))
        return np.array([*(upstream.spells(i) and i not in upstream.end for i in ids), False])

    @cached_property
    def _end(self) -> Flags:
        """By upstream id, and False at −1: an END the pair has a counterpart for."""
        end = self.map.upstream.end if self.pair_end else ()
        return np.array([*(i in end for i in range(len(self.map.upstream.tokens))), False])

    @cached_property
    def _ends(self) -> Ints:
        return np.array(sorted(self.pair_end), np.int64)


def grow(
    fixed: tuple[int, ...], ids: tuple[int, ...], paths: Sequence[tuple[bytes, Path]]
) -> tuple[Tree, tuple[Head, ...]]:
    """Merge (rest, path) pairs: what all share with ``ids`` is the trunk, the others branch off.

    Readings that begin with another token than the first's are left out: how likely a model finds
    the very first token of all nobody can say.
    """
    shared = [path.kept + _alike(ids[path.kept :], path.tail) for _, path in paths]
    if not fixed:
        paths = [pair for pair, count in zip(paths, shared, strict=True) if count]
    least = min(count for count in shared if fixed or count)
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    heads = []
    for rest, path in paths:
        node, branch = -1, []
        for token in ids[least : path.kept] + path.tail[max(0, least - path.kept) :]:
            node = nodes.setdefault((node, token), len(nodes))
            branch.append(node)
        heads.append(Head(node, rest, tuple(branch)))
    tokens, parents = tuple(t for _, t in nodes), tuple(p for p, _ in nodes)
    return Tree(fixed + ids[:least], tokens, parents), tuple(heads)


def _alike(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens both begin with."""
    count = 0
    for a, b in zip(left, right, strict=False):
        if a != b:
            break
        count += 1
    return count


def _found_at(upstream: Vocabulary, text: bytes, start: int) -> int:
    length = 0
    for token in upstream.encode(text):
        if length >= start:
            return token if length == start else -1
        length += len(upstream.tokens[token])
    return -1
