"""The whole upstream vocabulary as one model of the pair sees it: the fast rule, for all at once.

At the end of the text every pair token counts for the upstream token it begins with: one sum over
a row. At heads with a rest, thousands of pair tokens may spell the rest and more, and for each the
upstream must be asked what it has there. Only the likeliest are looked at; what the others may add
is in the bounds: each can only count for tokens that begin with the byte it goes on with.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tokenizer_maps.identity import difference
from tokenizer_maps.map import TokenMap
from tokenizer_maps.steps import Clamp, Flags, Floats, Head, Ints, Masses, Plan, Rows, Survey, Whole
from tokenizer_maps.sums import weights

LEAST = 1e-5  # of the mass of the text: rarer tokens over its end are not looked at
MOST = 64  # so many of them are looked at

LONGER = 0.1  # of a pair token's mass, for all upstream tokens that need it and more, in a prior
FAINT = -600.0  # nats: what is fainter than the likeliest head by more counts as this
_NO_BYTE = 256  # stands for the first byte of what spells nothing


def surveyed(plan: Plan) -> tuple[int, ...]:
    """The nodes at which a survey needs whole rows: those of all heads."""
    return tuple(sorted({head.node for head in plan.heads}))


@dataclass(frozen=True, eq=False)
class _Masses:
    """Masses in one unit, in which the end head weighs ``one``.

    ``events``: E by upstream id; ``coarse``: those that are only a first token's mass; ``context``:
    of the readings that end with the text; ``over``: of what goes over its end; ``unseen``: what
    was not looked at, by the byte it goes on with.
    """

    events: Floats
    coarse: Flags
    one: float
    context: float
    over: float
    unseen: Floats


@dataclass(frozen=True, eq=False)
class Surveyor:
    """Turns whole rows into surveys, and two surveys into the pair's whole view.

    ``ends``, ``floor`` and ``clamp`` are the bridge's. ``spans(plan, head, token)``: the upstream
    token that begins at the end of the text where a pair token spells a head's rest and more, −1
    where none does.
    """

    map: TokenMap
    ends: Ints
    floor: float
    clamp: Clamp
    spans: Callable[[Plan, Head, int], int]

    def survey(self, plan: Plan, rows: Rows) -> Survey:
        """What one model makes of every upstream token."""
        found = self._masses(plan, rows)
        floor, events = self.floor * found.one, found.events
        more = found.unseen[self._initial]
        least = np.where(found.coarse & (more > 0.0), 0.0, events)
        whole = found.context + found.over
        with np.errstate(divide="ignore"):
            prior = np.log(events) - math.log(whole) - self._sharing * (found.coarse | self._end)
            scores = np.log(events + floor) - math.log(whole)
            low = np.log(least + floor) - math.log(whole + found.unseen.sum())
            high = np.log(events + more + floor) - math.log(found.context)
        for values in (scores, low, high):
            values[~self._scored] = -math.inf
        return Survey(scores, low, high, prior)

    def whole(self, expert: Survey, antiexpert: Survey) -> Whole:
        """The offsets of everything, clamped."""
        delta = difference(expert.scores, antiexpert.scores)
        high = difference(expert.high, antiexpert.low)
        limit = self._limit
        return Whole(antiexpert.prior, np.clip(delta, -limit, limit), np.clip(high, -limit, limit))

    def _masses(self, plan: Plan, rows: Rows) -> _Masses:
        paths = weights(plan, Masses(np.zeros(0), rows.nodes))
        logs = paths[[head.node + 1 for head in plan.heads]]
        # Some heads are far likelier than the end head; none may leave the range of floats.
        logs = np.maximum(logs - max(0.0, float(logs.max())), FAINT)
        at = dict(zip(surveyed(plan), rows.rows[:, : len(self.map.pair.tokens)], strict=True))
        ending = [n for n, head in enumerate(plan.heads) if not head.rest]
        one, context = (math.exp(logs[0]), float(np.exp(logs[ending]).sum()))
        here = [np.exp(at[plan.heads[n].node] + logs[n]) for n in ending]
        size = len(self.map.upstream.tokens)
        begun = np.bincount(self._owners, np.sum(here, axis=0), size + 1)[:size]
        over, unseen = self._over(plan, at, logs, LEAST * context)
        events: Floats = np.where(self._text, begun + over, 0.0)
        coarse = self._unreached & (over == 0.0)
        ids, first = self._firsts
        events[ids] = np.where(coarse[ids], here[0][first], over[ids])
        events[self._end] = here[0][self.ends].sum()
        return _Masses(events, coarse, one, context, float(over.sum()), unseen)

    def _over(
        self, plan: Plan, at: dict[int, Floats], logs: Floats, least: float
    ) -> tuple[Floats, Floats]:
        """At the heads with a rest: masses by upstream id, and what was not looked at, by byte."""
        over, unseen = np.zeros(len(self._text)), np.zeros(_NO_BYTE + 1)
        numbers = [n for n, head in enumerate(plan.heads) if head.rest]
        if not numbers:
            return over, unseen
        spans = [self._beyond(plan.heads[n].rest) for n in numbers]
        heads = np.repeat(numbers, [len(ids) for ids, _ in spans])
        ids, follows = (np.concatenate(parts) for parts in zip(*spans, strict=True))
        mass = np.concatenate(
            [
                np.exp(at[plan.heads[n].node][some] + logs[n])
                for n, (some, _) in zip(numbers, spans, strict=True)
            ]
        )
        likely = np.flatnonzero(mass >= least)
        if len(likely) > MOST:
            likely = likely[np.argpartition(-mass[likely], MOST)[:MOST]]
        for n in likely.tolist():
            found = self.spans(plan, plan.heads[heads[n]], int(ids[n]))
            if found >= 0:
                over[found] += mass[n]
        mass[likely] = 0.0
        unseen += np.bincount(follows, mass, _NO_BYTE + 1)
        return over, unseen

    @cached_property
    def _beyond(self) -> Callable[[bytes], tuple[Ints, Ints]]:
        """The pair tokens that spell a rest and more, and the byte each goes on with."""
        tokens = self.map.pair.tokens

        def beyond(rest: bytes) -> tuple[Ints, Ints]:
            low, high = self.map.beyond(rest)
            ids = self.map.order[low:high].astype(np.int64)
            return ids, np.array([tokens[t][len(rest)] for t in ids.tolist()], np.int64)

        return lru_cache(64)(beyond)

    @cached_property
    def _owners(self) -> Ints:
        """By pair id: the upstream token it begins with; one past the last where there is none."""
        size = len(self.map.upstream.tokens)
        owners = np.full(len(self.map.pair.tokens), size)
        owners[self.map.frt_ids] = np.repeat(np.arange(size), np.diff(self.map.frt_ptr))
        return owners

    @cached_property
    def _text(self) -> Flags:
        """By upstream id: a token of text that is no END."""
        upstream = self.map.upstream
        ids = range(len(upstream.tokens))
        return np.array([upstream.spells(i) and i not in upstream.end for i in ids])

    @cached_property
    def _end(self) -> Flags:
        """By upstream id: an END the pair has a counterpart for."""
        end = self.map.upstream.end if len(self.ends) else ()
        return np.array([i in end for i in range(len(self.map.upstream.tokens))])

    @cached_property
    def _unreached(self) -> Flags:
        """Text that no single pair token begins with, and that has a first pair token."""
        found: Flags = self._text & (np.diff(self.map.frt_ptr) == 0) & (self.map.first >= 0)
        return found

    @cached_property
    def _firsts(self) -> tuple[Ints, Ints]:
        """The ids of what is unreached, and the first pair token of each."""
        ids = np.flatnonzero(self._unreached)
        return ids, self.map.first[ids].astype(np.int64)

    @cached_property
    def _scored(self) -> Flags:
        found: Flags = self._end | self._unreached | (self._text & (np.diff(self.map.frt_ptr) > 0))
        return found

    @cached_property
    def _sharing(self) -> Floats:
        """ln of how many upstream tokens share one mass: all ENDs; what has one first token.

        Offsets are ratios for which that is no matter; of a prior each can only have a share.
        """
        count = np.ones(len(self._text))
        ids, first = self._firsts
        if len(ids):
            count[ids] = np.bincount(first)[first] / LONGER
        count[self._end] = self._end.sum()
        return np.log(count)

    @cached_property
    def _initial(self) -> Ints:
        """By upstream id: its first byte, where it is text."""
        tokens = self.map.upstream.tokens
        spelt = zip(tokens, self._text.tolist(), strict=True)
        return np.array([token[0] if text else _NO_BYTE for token, text in spelt])

    @cached_property
    def _limit(self) -> Floats:
        return np.where(self._end, self.clamp.end, self.clamp.offset)
