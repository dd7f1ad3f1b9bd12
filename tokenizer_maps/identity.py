"""Offsets where upstream and pair have one tokenizer: no bridge at all."""

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import cached_property, lru_cache

import numpy as np

from tokenizer_maps.steps import (
    Context,
    Flags,
    Floats,
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
from tokenizer_maps.vocabulary import Vocabulary

NOTHING_TO_READ = "the pair has nothing to read: give it a start token or a text"


@dataclass(frozen=True, eq=False)
class IdentityBridge:
    """For one common tokenizer: the plain difference of log-probabilities, id by id."""

    pair: Vocabulary

    def plan(self, context: Context) -> Plan:
        trunk = context.fixed + self._prompt(context.prompt) + context.generated
        if not trunk:
            raise ValueError(NOTHING_TO_READ)
        return Plan(Tree(trunk, (), ()), (Head(-1, b"", ()),), b"")

    def sets(
        self, plan: Plan, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Sets:
        ids = np.asarray(candidates, np.int64)
        (owners,) = ((ids >= 0) & (ids < len(self.pair.tokens))).nonzero()
        nodes, ptr, roles = _one_each(len(owners))
        no = np.zeros(len(ids), np.bool_)
        return Sets(
            nodes=nodes,
            ptr=ptr,
            ids=ids[owners],
            sums=ptr[:-1],
            owners=owners,
            roles=roles,
            end=no,
            multi=no,
            capped=no,
        )

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        return None

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        scores = np.zeros(len(sets.end))
        scores[sets.owners] = masses.sets
        unscored = ~flags(sets.owners, len(sets.end))
        return Reading(scores, sets.end, sets.multi, unscored, sets.capped)

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        delta = difference(expert.scores, antiexpert.scores)
        no = np.zeros_like(expert.end)
        return Offsets(delta, expert.unscored, expert.multi, clamped=no, capped=no)

    def surveyed(self, plan: Plan) -> tuple[int, ...]:
        return (-1,)

    def survey(self, plan: Plan, rows: Rows) -> Survey:
        scores = rows.rows[0, : len(self.pair.tokens)]
        return Survey(scores, scores, scores, scores)

    def whole(self, expert: Survey, antiexpert: Survey) -> Whole:
        delta = difference(expert.scores, antiexpert.scores)
        return Whole(antiexpert.prior, delta, delta)

    @cached_property
    def _prompt(self) -> Callable[[bytes], tuple[int, ...]]:
        return lru_cache(16)(self.pair.encode)


@lru_cache(16)
def _one_each(count: int) -> tuple[Ints, Ints, Ints]:
    """Nodes, pointers and roles of ``count`` sums of one id each, at the end of the trunk."""
    return np.full(count, -1), np.arange(count + 1), np.full(count, Role.PART, np.int64)


def flags(owners: Sequence[int] | Ints, count: int) -> Flags:
    """True for the owners among ``count`` entries."""
    found = np.zeros(count, np.bool_)
    found[np.asarray(owners, np.int64)] = True
    return found


def difference(left: Floats, right: Floats) -> Floats:
    """left − right, and 0 where both are −inf."""
    return np.subtract(left, right, out=np.zeros_like(left), where=left != right)
