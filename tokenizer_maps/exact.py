"""Exact offsets across two tokenizers: what a pair token leaves open is followed one pass further.

A pair token may spell only the beginning of a candidate: the node behind it is **open**. Its mass
counts for the upstream token it would be if the text ended there, until the node is **expanded**,
that is until the pair has been asked what comes next. What then spells the candidate is moved to
the token the upstream sees there; the rest stays. A path is followed until it can no longer become
a longer candidate, so every path is some token's in the end: the masses are those of a partition.
"""

import math
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from typing import NamedTuple

import numpy as np

from tokenizer_maps.fast import MANY, FastBridge, Texts
from tokenizer_maps.steps import Inner, Masses, Open, Plan, Role, Sets, Tree
from tokenizer_maps.sums import Sums, weights

ESCALATION = 0.1  # of the upstream's probability: what fast may see only coarsely
ALWAYS = -1.0  # as such a threshold: always exact
EPSILON = 1e-4  # open nodes up to this mass, in units of the end head's, are not followed
NODES = 64  # of one second pass
WIDE = 128  # tokens that cover a candidate from one node, up to which each one is looked at


class _Source(NamedTuple):
    """A place from which pair tokens lead on: a head, or an expanded node."""

    node: int
    head: int
    spelt: bytes
    rest: bytes  # of the text, still to be produced
    inner: bool


class _Wish(NamedTuple):
    """Candidate text, its upstream id and probability, its numbers among the candidates."""

    text: bytes
    id: int
    chance: float
    numbers: list[int]


@dataclass(frozen=True, eq=False)
class ExactBridge(FastBridge):
    """Fast, and with a second pass where the candidates it sees coarsely weigh more than ``above``.

    ``epsilon``: open nodes of less mass (the end head's is 1) are left open, ``cap``: so many nodes
    a pass at most. More than a few hundred candidates are always read fast.

    The interval is proved for the partition above, given the pair's canonical readings of the text
    so far. Whether the upstream's last word is the same depends on bytes that come later still, so
    for its own event the interval is an estimate.
    """

    above: float = ESCALATION
    epsilon: float = EPSILON
    cap: int = NODES

    def sets(
        self, plan: Plan, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Sets:
        ids = self._known(candidates)
        sums, reached = self._events(plan, ids)
        coarse = self._text[ids] & ~reached
        likely = np.full(len(ids), 1 / max(1, len(ids))) if chances is None else np.array(chances)
        if len(ids) >= MANY or not (plan.inner or likely[coarse].sum() > self.above):
            return self._finished(plan, ids, sums, reached)
        wishes = [
            _Wish(self.map.upstream.tokens[c], c, float(likely[numbers].sum()), numbers)
            for c, numbers in self._texts(ids).items()
        ]
        step = _Step(self, plan, sums, wishes)
        step.run()
        reached[list(step.reached)] = True
        multi = np.flatnonzero(self._text[ids] & ~reached & (self.map.first[ids] >= 0))
        for number in multi.tolist():  # the coarser event bounds it from above
            first = sums.add(plan.heads[0].node, self.map.first[ids[number] : ids[number] + 1])
            sums.use(first, number, Role.MAY_LEAVE)
        sets = self._finished(plan, ids, sums, reached)
        capped = np.zeros(len(ids), np.bool_)
        for wish in wishes:
            capped[wish.numbers] = any(wish.text.startswith(spelt) for spelt in plan.dropped)
        return replace(sets, capped=capped, bounded=True, open=tuple(step.open))

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        """Expands what weighs more than ε for any model, the likeliest first."""
        if not sets.open:
            return None
        heavy = np.full(len(sets.open), -np.inf)
        for one in masses:
            behind = weights(plan, one)[[found.node + 1 for found in sets.open]]
            heavy = np.maximum(heavy, behind + one.sets[[found.sum for found in sets.open]])
        least = math.log(self.epsilon) if self.epsilon else -np.inf
        branches: dict[tuple[int, tuple[int, ...]], list[float]] = {}
        spelt: dict[tuple[int, tuple[int, ...]], tuple[int, bytes]] = {}
        for found, mass in zip(sets.open, heavy.tolist(), strict=True):
            if mass <= least:
                continue
            for path, text, chance in self._continued(found):
                key = found.node, path
                spelt[key] = found.head, text
                branches.setdefault(key, []).append(chance * math.exp(min(mass, 0.0)))
        order = sorted(branches, key=lambda key: (-math.fsum(branches[key]), len(key[1])))
        return self._planted(plan, order, spelt) if order else None

    def _planted(
        self,
        plan: Plan,
        order: Sequence[tuple[int, tuple[int, ...]]],
        spelt: dict[tuple[int, tuple[int, ...]], tuple[int, bytes]],
    ) -> Plan:
        """The plan with new nodes at (node, path), as many as have room, in this order."""
        tokens, parents = list(plan.tree.tokens), list(plan.tree.parents)
        places: dict[tuple[int, tuple[int, ...]], int] = {}
        inner, dropped = list(plan.inner), list(plan.dropped)
        for key in order:
            start, path = key
            parent = places.get((start, path[:-1]), start if len(path) == 1 else None)
            head, text = spelt[key]
            if len(places) >= self.cap:
                dropped.append(text)
                continue
            if parent is None:  # its beginning is no canonical path of its own
                continue
            places[key] = len(tokens)
            tokens.append(path[-1])
            parents.append(parent)
            inner.append(Inner(places[key], head, text))
        tree = Tree(plan.tree.trunk, tuple(tokens), tuple(parents))
        return replace(plan, tree=tree, inner=tuple(inner), dropped=tuple(dropped))

    def _continued(self, found: Open) -> Iterator[tuple[tuple[int, ...], bytes, float]]:
        """The open node and the canonical paths from it into candidates: (path, spelt, chance)."""
        first = self.map.pair.tokens[found.token]
        for text, chance in found.longer:
            yield (found.token,), found.spelt, chance
            ahead = text[len(found.spelt) :]
            for length in range(1, len(ahead)):
                path = self.encoder.piece(first + ahead[:length])
                if path[:1] == (found.token,) and len(path) > 1:
                    yield path, found.spelt + ahead[:length], chance


class _Step:
    """One laying out of sums: what is open, what is expanded, and whose each mass is."""

    def __init__(
        self, bridge: ExactBridge, plan: Plan, sums: Sums, wishes: Sequence[_Wish]
    ) -> None:
        self._map, self._found_at, self._writes = bridge.map, bridge.found_at, bridge.writes
        self._plan, self._sums, self._wishes = plan, sums, wishes
        self._numbers: Texts = {wish.id: wish.numbers for wish in wishes}
        tree = plan.tree
        self._expanded = {(tree.parents[one.node], tree.tokens[one.node]) for one in plan.inner}
        self.reached: set[int] = set()
        self.open: list[Open] = []

    def run(self) -> None:
        """Lay out heads and expanded nodes."""
        for h, head in enumerate(self._plan.heads):
            self._leave(_Source(head.node, h, b"", head.rest, inner=False))
        for one in self._plan.inner:
            source = _Source(one.node, one.head, one.spelt, b"", inner=True)
            self._cover(source, self._leave(source))

    def _leave(self, source: _Source) -> set[int]:
        """The tokens that spell the beginning of a candidate and no more."""
        longer: dict[int, tuple[bytes, list[_Wish]]] = {}
        for wish, rest in self._ahead(source):
            for length in range(len(source.rest) + 1, len(rest)):
                spelt = source.spelt + rest[len(source.rest) : length]
                for token in self._spelling(rest[:length]):
                    longer.setdefault(token, (spelt, []))[1].append(wish)
        head = self._plan.heads[source.head]
        for token, (spelt, wishes) in longer.items():
            if source.rest and not self._writes(self._plan, head, token):
                continue
            verdict, number = self._verdict(source.head, spelt), None
            if source.inner:
                number = self._sums.add(source.node, [token])
                self._move(number, source, verdict)
            if (source.node, token) not in self._expanded:
                number = self._sums.add(source.node, [token]) if number is None else number
                self._doubt(number, spelt, verdict)
                texts = tuple((wish.text, wish.chance) for wish in wishes)
                self.open.append(Open(source.node, token, source.head, spelt, number, texts))
        return set(longer)

    def _cover(self, source: _Source, seen: set[int]) -> None:
        """The tokens that complete a candidate, or more than complete it, without those seen."""
        by_verdict: dict[int, list[int]] = {}
        tokens, order = self._map.pair.tokens, self._map.order
        # The longest first: what covers it covers the shorter ones it begins with.
        for wish, rest in sorted(self._ahead(source), key=lambda pair: -len(pair[1])):
            low, high = self._map.span(rest)
            if high - low > WIDE:
                own = self._spelling(rest)
                wide = np.setdiff1d(order[low:high], [*seen, *own])
                stay = self._verdict(source.head, source.spelt)
                self._doubt(self._sums.add(source.node, wide), wish.text, stay)
                seen.update(wide.tolist())
            else:
                own = order[low:high].tolist()
            for t in own:
                if t not in seen:
                    verdict = self._verdict(source.head, source.spelt + tokens[t])
                    by_verdict.setdefault(verdict, []).append(t)
            seen.update(own)
        for verdict, ids in by_verdict.items():
            self._move(self._sums.add(source.node, ids), source, verdict)

    def _ahead(self, source: _Source) -> list[tuple[_Wish, bytes]]:
        """The longer candidates, and what remains to be spelt of each."""
        spelt = source.spelt
        return [
            (wish, source.rest + wish.text[len(spelt) :])
            for wish in self._wishes
            if len(wish.text) > len(spelt) and wish.text.startswith(spelt)
        ]

    def _move(self, number: int, source: _Source, verdict: int) -> None:
        """A part of an expanded node's mass is the verdict's, no more what the node's was."""
        stay = self._verdict(source.head, source.spelt)
        for owner in self._numbers.get(verdict, ()):
            self.reached.add(owner)
            if verdict != stay:
                self._sums.use(number, owner, Role.PART)
        if verdict != stay:
            for owner in self._numbers.get(stay, ()):
                self._sums.use(number, owner, Role.MOVED)

    def _doubt(self, number: int, spelt: bytes, verdict: int) -> None:
        """A mass counts for the verdict, and may yet be of any candidate it can spell or has."""
        for wish in self._wishes:
            if wish.id == verdict:
                role = Role.MAY_LEAVE
            elif wish.text.startswith(spelt) or spelt.startswith(wish.text):
                role = Role.MAY_COME
            else:
                continue
            for owner in wish.numbers:
                self._sums.use(number, owner, role)

    def _spelling(self, text: bytes) -> list[int]:
        """The pair tokens that spell ``text``."""
        if self._map.pair.id_of(text) is None:
            return []
        low, high = self._map.span(text)[0], self._map.beyond(text)[0]
        return [int(token) for token in self._map.order[low:high]]

    def _verdict(self, head: int, spelt: bytes) -> int:
        """The upstream token after the text, if ``spelt`` follows; −1 if no token begins there."""
        if not self._plan.heads[head].rest:
            return self._found_at(spelt, 0)
        return self._found_at(self._plan.tail + spelt, len(self._plan.tail))
