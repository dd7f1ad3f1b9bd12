"""Offsets of upstream tokens from a pair with another tokenizer, in three pure steps.

``plan`` lays out what the pair reads, ``sets`` which probabilities it sums, ``offsets`` what the
sums mean. Between the steps the pair evaluates its models; no model, device or file is known here.

A candidate c is the event "the upstream's next token is c". At the end of the text a pair token
counts for c if its own upstream encoding starts with c. But the pair's tokens need not end where
the text does, so the text is also read up to earlier cuts; a **head** is one such reading, with the
``rest`` of the text still to be produced, and there a pair token counts for c if it spells the
rest, then c, and the upstream really has c there.
"""

import math
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache, partial
from itertools import chain, takewhile
from pathlib import Path
from typing import Literal, NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.map import TokenMap, open_map
from tokenizer_maps.vocabulary import Vocabulary

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]

FLOOR = 1e-6  # η: added to every mass, in units of the mass of the pair's own reading of the text
NOTHING_TO_READ = "the pair has nothing to read: give it a start token or a text"
LOOKBACK = 64  # bytes the upstream re-reads before the end of the text, at least


@dataclass(frozen=True)
class Context:
    """What the pair has read so far.

    ``fixed``: pair ids up to its last special token; ``prompt``: the prompt's text after that;
    ``generated``: upstream ids generated since, none of them an END.
    """

    fixed: tuple[int, ...]
    prompt: bytes
    generated: tuple[int, ...]


@dataclass(frozen=True)
class Tree:
    """What the pair must evaluate: a trunk, never empty, and the branches at its end.

    ``parents[i]`` is the index in ``tokens`` of the token before ``tokens[i]``, −1 for the end of
    the trunk; parents come before their children.
    """

    trunk: tuple[int, ...]
    tokens: tuple[int, ...]
    parents: tuple[int, ...]


@dataclass(frozen=True)
class Head:
    """The canonical pair path of the text without its last bytes ``rest``.

    It ends at the tree's ``node``, −1 for the end of the trunk; ``path_nodes`` lead there.
    """

    node: int
    rest: bytes
    path_nodes: tuple[int, ...]


@dataclass(frozen=True)
class Plan:
    """A tree, its heads, and the end of the text from an upstream token boundary on.

    ``heads[0]`` is the end head, whose rest is empty. ``tail`` is never shorter than a rest.
    """

    tree: Tree
    heads: tuple[Head, ...]
    tail: bytes


@dataclass(frozen=True)
class Sets:
    """Sums the pair computes on its device: Σ p(t | nodes[j]) for t in ids[ptr[j]:ptr[j + 1]].

    Sum j is part of the mass of candidate number ``owners[j]``; the number after the last one is
    the context itself. ``end`` and ``multi`` have one entry a candidate.
    """

    nodes: Ints
    ptr: Ints
    ids: Ints
    owners: Ints
    end: Flags
    multi: Flags


@dataclass(frozen=True)
class Masses:
    """What one model gives back, in nats, −inf allowed.

    ``sets[j]``: the log of sum j; ``nodes[i]``: log p(tokens[i] | its parent) in the tree.
    """

    sets: Floats
    nodes: Floats


@dataclass(frozen=True)
class Reading:
    """What one model makes of the candidates: a log-probability each, and how it came about."""

    scores: Floats
    end: Flags
    multi: Flags
    unscored: Flags


@dataclass(frozen=True)
class Offsets:
    """One entry a candidate: ``delta`` in nats, and what it is worth.

    ``unscored``: the pair cannot score it, delta 0; ``multi``: the pair needs several tokens for
    it, only the first is scored; ``clamped``: delta lay beyond the clamp.
    """

    delta: Floats
    unscored: Flags
    multi: Flags
    clamped: Flags


@dataclass(frozen=True)
class Clamp:
    """The largest |delta| in nats: of a text token, and of an END."""

    offset: float = 10.0
    end: float = 2.0


class Bridge(Protocol):
    """The three steps. Offsets depend on the text alone, never on how the tree was cut.

    Each model of a pair may have its own rendering of the prompt, so each has its own plan, sets
    and reading; what was generated since is common to all.
    """

    def plan(self, context: Context) -> Plan:
        """What the pair must evaluate; ValueError where it has nothing to read."""

    def sets(self, plan: Plan, candidates: Sequence[int]) -> Sets:
        """The sums wanted for candidates given as upstream ids, −1 for unidentified ones."""

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        """What the sums of one model mean."""

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        """The offsets of the candidates that ``sets`` was asked about."""


@dataclass(frozen=True, eq=False)
class IdentityBridge:
    """For one common tokenizer: the plain difference of log-probabilities, id by id."""

    pair: Vocabulary

    def plan(self, context: Context) -> Plan:
        trunk = context.fixed + self.pair.encode(context.prompt) + context.generated
        if not trunk:
            raise ValueError(NOTHING_TO_READ)
        return Plan(Tree(trunk, (), ()), (Head(-1, b"", ()),), b"")

    def sets(self, plan: Plan, candidates: Sequence[int]) -> Sets:
        ids = np.asarray(candidates, np.int64)
        owners = np.flatnonzero((ids >= 0) & (ids < len(self.pair.tokens)))
        no = np.zeros(len(ids), np.bool_)
        nodes, ptr = np.full(len(owners), -1), np.arange(len(owners) + 1)
        return Sets(nodes, ptr, ids[owners], owners, end=no, multi=no)

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        scores = np.zeros(len(sets.end))
        scores[sets.owners] = masses.sets
        return Reading(scores, sets.end, sets.multi, ~_owned(sets.owners, len(sets.end)))

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        delta = _difference(expert.scores, antiexpert.scores)
        return Offsets(delta, expert.unscored, expert.multi, clamped=np.zeros_like(expert.end))


class _Term(NamedTuple):
    """One set: Σ p(t | head) over ``ids`` is part of the mass of candidate number ``owner``."""

    owner: int
    head: int
    ids: NDArray[np.integer]


@dataclass(frozen=True, eq=False)
class FastBridge:
    """For two tokenizers: token events from one pass over a small tree.

    ``pair_end``: the ids that end a text for the pair's models; ``floor``: η, added to every mass
    in units of the mass of the end head, so that offsets do not depend on where a trunk is cut.
    """

    map: TokenMap
    pair_end: frozenset[int]
    clamp: Clamp = Clamp()
    floor: float = FLOOR

    def plan(self, context: Context) -> Plan:
        text = context.prompt + self.map.upstream.decode(context.generated)
        readings = self._readings(context.fixed, text)
        least = max(LOOKBACK, *(len(rest) for rest, _ in readings))
        return Plan(*_grow(readings), text[len(text) - self._lookback(context, least) :])

    def sets(self, plan: Plan, candidates: Sequence[int]) -> Sets:
        ids = np.asarray(candidates, np.int64)
        known = np.where((ids >= 0) & (ids < len(self._text) - 1), ids, -1)
        texts = [(int(j), int(known[j])) for j in np.flatnonzero(self._text[known])]
        events = [*self._begun(texts), *self._spanning(plan, texts)]
        multi = list(self._first_only(texts, {term.owner for term in events}))
        end = self._end[known]
        ends = [_Term(int(j), 0, self._ends) for j in np.flatnonzero(end)]
        terms = [*events, *multi, *ends, *self._context(plan, len(ids))]
        return Sets(
            nodes=np.array([plan.heads[term.head].node for term in terms], np.int64),
            ptr=np.cumsum([0, *(len(term.ids) for term in terms)]),
            ids=np.concatenate([np.zeros(0, np.int64), *(term.ids for term in terms)]),
            owners=np.array([term.owner for term in terms], np.int64),
            end=end,
            multi=_owned([term.owner for term in multi], len(ids)),
        )

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        """ln(E + η) − ln Z of every candidate, in the scale where the end head weighs 1."""
        mass = np.full(len(sets.end) + 1, -np.inf)
        mass[-1] = 0.0  # what the end head itself adds to Z
        np.logaddexp.at(mass, sets.owners, _weights(plan, masses)[sets.nodes + 1] + masses.sets)
        floor = math.log(self.floor) if self.floor else -np.inf
        scores = np.logaddexp(mass[:-1], floor) - mass[-1]
        unscored = ~_owned(sets.owners, len(sets.end) + 1)[:-1]
        return Reading(scores, sets.end, sets.multi, unscored)

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        # An event that one rendering can only see coarsely is not the other's event.
        unequal = expert.multi != antiexpert.multi
        unscored = expert.unscored | antiexpert.unscored | unequal
        delta = np.where(unscored, 0.0, _difference(expert.scores, antiexpert.scores))
        limit = np.where(expert.end, self.clamp.end, self.clamp.offset)
        clamped = np.abs(delta) > limit
        return Offsets(np.clip(delta, -limit, limit), unscored, expert.multi, clamped)

    def _readings(self, fixed: tuple[int, ...], text: bytes) -> list[tuple[bytes, tuple[int, ...]]]:
        """(rest, canonical path of the text before it): the end, then all that a token can span.

        Readings that begin with another token than the end's are left out: how likely a model
        finds the very first token nobody can say.
        """
        end = fixed + self._encode(text)
        if not end:
            raise ValueError(NOTHING_TO_READ)
        rests = (text[i:] for i in range(max(0, len(text) - self.map.longest), len(text)))
        spanned = [rest for rest in rests if self._extended(rest)]
        paths = [(rest, fixed + self._encode(text[: -len(rest)])) for rest in spanned]
        return [(b"", end), *((rest, path) for rest, path in paths if path[:1] == end[:1])]

    def _extended(self, rest: bytes) -> bool:
        low, high = self.map.beyond(rest)
        return low < high

    def _lookback(self, context: Context, least: int) -> int:
        """Bytes from the end of the text to the last upstream boundary at least ``least`` back.

        Re-reading from anywhere else finds tokens the upstream does not see.
        """
        length = 0
        tokens = self.map.upstream.tokens
        for i in chain(reversed(context.generated), reversed(self._upstream_ids(context.prompt))):
            if length >= least:
                break
            length += len(tokens[i])
        return length

    def _begun(self, texts: list[tuple[int, int]]) -> Iterator[_Term]:
        """At the end of the text: the tokens whose own upstream encoding starts with c."""
        for j, c in texts:
            row = self.map.frt_ids[self.map.frt_ptr[c] : self.map.frt_ptr[c + 1]]
            if len(row):
                yield _Term(j, 0, row)

    def _spanning(self, plan: Plan, texts: list[tuple[int, int]]) -> Iterator[_Term]:
        """At the other heads: the tokens that spell the rest, then c, where the upstream has c."""
        tokens = self.map.pair.tokens
        for h, head in enumerate(plan.heads[1:], 1):
            before = plan.tail[: -len(head.rest)]
            for j, c in texts:
                low, high = self.map.span(head.rest + self.map.upstream.tokens[c])
                reach = self.map.order[low:high].tolist()
                ids = [t for t in reach if self._token_at(before + tokens[t], len(plan.tail)) == c]
                if ids:
                    yield _Term(j, h, np.array(ids))

    def _first_only(self, texts: list[tuple[int, int]], reached: set[int]) -> Iterator[_Term]:
        """For what no single token reaches: the first canonical token of c.

        A coarser event than c, sound as a ratio of two models, no probability of c.
        """
        for j, c in texts:
            if j not in reached and self.map.first[c] >= 0:
                yield _Term(j, 0, self.map.first[c : c + 1])

    def _context(self, plan: Plan, owner: int) -> Iterator[_Term]:
        """At the other heads: all tokens that spell the rest and more."""
        for h, head in enumerate(plan.heads[1:], 1):
            low, high = self.map.beyond(head.rest)
            yield _Term(owner, h, self.map.order[low:high])

    @cached_property
    def _token_at(self) -> Callable[[bytes, int], int]:
        return lru_cache(1 << 14)(partial(_token_at, self.map.upstream))

    @cached_property
    def _encode(self) -> Callable[[bytes], tuple[int, ...]]:
        return lru_cache(256)(self.map.pair.encode)

    @cached_property
    def _upstream_ids(self) -> Callable[[bytes], tuple[int, ...]]:
        return lru_cache(16)(self.map.upstream.encode)

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


def make_bridge(
    mode: Literal["auto", "identity", "fast"],
    upstream: Vocabulary,
    pair: Vocabulary,
    pair_end: frozenset[int],
    maps: Path,
    clamp: Clamp,
) -> Bridge:
    """The bridge for two vocabularies; ``auto`` is identity where their fingerprints are equal.

    ``maps`` is the directory of map files. Raises VocabularyError for ``identity`` on different
    tokenizers, MapError where a map cannot be written.
    """
    same = upstream.fingerprint == pair.fingerprint
    if mode == "identity" and not same:
        raise VocabularyError("the identity bridge needs one tokenizer on both sides: use fast")
    if same and mode != "fast":
        return IdentityBridge(pair)
    return FastBridge(open_map(maps, upstream, pair), pair_end, clamp)


def _grow(readings: Sequence[tuple[bytes, tuple[int, ...]]]) -> tuple[Tree, tuple[Head, ...]]:
    """Merge the paths of (rest, path) pairs: what all share is the trunk, the others branch off."""
    paths = [path for _, path in readings]
    # What the first and the last path in order share is what all of them share.
    columns = zip(min(paths), max(paths), strict=False)
    trunk = tuple(left for left, _ in takewhile(lambda column: column[0] == column[1], columns))
    nodes: dict[tuple[int, int], int] = {}  # (parent, token) -> index
    heads = []
    for rest, path in readings:
        node, branch = -1, []
        for token in path[len(trunk) :]:
            node = nodes.setdefault((node, token), len(nodes))
            branch.append(node)
        heads.append(Head(node, rest, tuple(branch)))
    tokens, parents = tuple(t for _, t in nodes), tuple(p for p, _ in nodes)
    return Tree(trunk, tokens, parents), tuple(heads)


def _token_at(upstream: Vocabulary, text: bytes, start: int) -> int:
    """The upstream token that begins at byte ``start`` of ``text``; −1 where none does."""
    length = 0
    for token in upstream.encode(text):
        if length == start:
            return token
        length += len(upstream.tokens[token])
    return -1


def _weights(plan: Plan, masses: Masses) -> Floats:
    """ln w by node, the trunk's end first, relative to the end head.

    A model that finds the text itself impossible has no other scale: its end head stands alone.
    """
    end = plan.heads[0]
    own = masses.nodes[list(end.path_nodes)].sum()
    weights = np.full(len(plan.tree.tokens) + 1, -np.inf)
    if np.isfinite(own):
        for head in plan.heads:
            weights[head.node + 1] = masses.nodes[list(head.path_nodes)].sum() - own
    weights[end.node + 1] = 0.0
    return weights


def _owned(owners: Sequence[int] | Ints, count: int) -> Flags:
    flags = np.zeros(count, np.bool_)
    flags[np.asarray(owners, np.int64)] = True
    return flags


def _difference(left: Floats, right: Floats) -> Floats:
    """left − right, and 0 where both are −inf."""
    return np.subtract(left, right, out=np.zeros_like(left), where=left != right)
