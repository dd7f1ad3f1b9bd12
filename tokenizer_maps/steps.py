"""What passes between a bridge and the pair: places in a text, trees, sums, readings, offsets."""

from collections.abc import Sequence
from dataclasses import dataclass
from enum import IntEnum
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]
Flags = NDArray[np.bool_]


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
    """The canonical pair path of the text without its last bytes ``rest``, or its beginning.

    It ends at the tree's ``node``, −1 for the end of the trunk; ``path_nodes`` lead there.
    """

    node: int
    rest: bytes
    path_nodes: tuple[int, ...]


@dataclass(frozen=True)
class Inner:
    """A tree node past the end of the text: from head number ``head`` on, it has spelt ``spelt``.

    ``spelt`` starts at the end of the text and is the beginning of a longer candidate.
    """

    node: int
    head: int
    spelt: bytes


@dataclass(frozen=True)
class Plan:
    """A tree, its heads, and the end of the text from an upstream token boundary on.

    ``heads[0]`` is the end head: the canonical path of the text itself. ``tail`` is never shorter
    than a rest. ``inner``: the nodes of a second pass; ``dropped``: what others would have
    spelt, left out because the tree was full.
    """

    tree: Tree
    heads: tuple[Head, ...]
    tail: bytes
    inner: tuple[Inner, ...] = ()
    dropped: tuple[bytes, ...] = ()


class Role(IntEnum):
    """What a sum is to a candidate."""

    PART = 0  # counts for it
    MOVED = 1  # was counted for it, and is another's
    MAY_LEAVE = 2  # counts for it, and may yet be another's
    MAY_COME = 3  # counts for another or for none, and may yet be its own


@dataclass(frozen=True)
class Open:
    """A node that is not in the tree: ``token`` after ``node``, with p(token | node) as a sum.

    ``head`` and ``spelt`` as in Inner. ``longer``: the candidates it may become, as (text, the
    upstream's probability).
    """

    node: int
    token: int
    head: int
    spelt: bytes
    sum: int
    longer: tuple[tuple[bytes, float], ...]


@dataclass(frozen=True)
class Sets:
    """Sums the pair computes on its device: Σ p(t | nodes[j]) for t in ids[ptr[j]:ptr[j + 1]].

    Use i: sum ``sums[i]`` has role ``roles[i]`` for candidate number ``owners[i]``; the number
    after the last one is the context itself, beside its end heads. ``end``, ``multi`` and
    ``capped`` have one entry a candidate. ``bounded``: the uses allow an interval, whose width
    ``open`` nodes could reduce.
    """

    nodes: Ints
    ptr: Ints
    ids: Ints
    sums: Ints
    owners: Ints
    roles: Ints
    end: Flags
    multi: Flags
    capped: Flags
    bounded: bool = False
    open: tuple[Open, ...] = ()


@dataclass(frozen=True)
class Masses:
    """What one model gives back, in nats, −inf allowed.

    ``sets[j]``: the log of sum j; ``nodes[i]``: log p(tokens[i] | its parent) in the tree.
    """

    sets: Floats
    nodes: Floats


@dataclass(frozen=True)
class Reading:
    """What one model makes of the candidates: a log-probability each, and how it came about.

    ``low`` ≤ ``scores`` ≤ ``high`` where the sets were bounded, else None.
    """

    scores: Floats
    end: Flags
    multi: Flags
    unscored: Flags
    capped: Flags
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Offsets:
    """One entry a candidate: ``delta`` in nats, and what it is worth.

    ``unscored``: the pair cannot score it, delta 0; ``multi``: the pair needs several tokens for
    it, only the first is scored; ``clamped``: delta lay beyond the clamp; ``capped``: the tree
    was too small for all that could become it. ``low`` ≤ delta ≤ ``high``: where delta lies
    however the mass that was not followed divides; None from a bridge that gives no interval.
    """

    delta: Floats
    unscored: Flags
    multi: Flags
    clamped: Flags
    capped: Flags
    low: Floats | None = None
    high: Floats | None = None


@dataclass(frozen=True)
class Clamp:
    """The largest |delta| in nats: of a text token, and of an END."""

    offset: float = 10.0
    end: float = 2.0


@dataclass(frozen=True)
class Rows:
    """One model's whole distributions at some nodes of a tree, in nats.

    ``rows[i]``: log p(t | node i) of every pair token t, at the nodes a bridge asked for;
    ``nodes``: as in Masses.
    """

    rows: Floats
    nodes: Floats


@dataclass(frozen=True)
class Survey:
    """What one model makes of every upstream token, by id, in nats; −inf for what it cannot give.

    ``low`` ≤ ``scores`` ≤ ``high``: however the mass that was only looked at coarsely divides.
    ``scores`` are made for offsets; ``prior`` is a log-probability up to a constant: no floor, and
    tokens that can only be seen together share their mass.
    """

    scores: Floats
    low: Floats
    high: Floats
    prior: Floats


@dataclass(frozen=True)
class Whole:
    """What the pair makes of every upstream token, by id, in nats.

    ``prior``: the anti-expert's log-probability up to a common constant, −inf for what it cannot
    give; ``delta``: the offset, 0 where the pair cannot score a token; ``high`` ≥ delta: however
    the mass that was only looked at coarsely divides.
    """

    prior: Floats
    delta: Floats
    high: Floats


class Bridge(Protocol):
    """The steps. Offsets depend on the text alone, never on how the tree was cut.

    Each model of a pair may have its own rendering of the prompt, so each has its own plan, sets
    and reading; what was generated since is common to all.
    """

    def plan(self, context: Context) -> Plan:
        """What the pair must evaluate; ValueError where it has nothing to read."""

    def sets(
        self, plan: Plan, candidates: Sequence[int], chances: Sequence[float] | None = None
    ) -> Sets:
        """The sums wanted for candidates given as upstream ids, −1 for unidentified ones.

        ``chances`` are their probabilities upstream; without them all are alike.
        """

    def deeper(self, plan: Plan, sets: Sets, masses: Sequence[Masses]) -> Plan | None:
        """The plan of a second pass, None where the first was enough.

        ``masses`` are those of all models that share the plan. The new tree begins with the old
        one; ``sets`` of the new plan replace the old ones.
        """

    def reading(self, plan: Plan, sets: Sets, masses: Masses) -> Reading:
        """What the sums of one model mean."""

    def offsets(self, expert: Reading, antiexpert: Reading) -> Offsets:
        """The offsets of the candidates that ``sets`` was asked about."""

    def surveyed(self, plan: Plan) -> tuple[int, ...]:
        """The nodes of a plan's tree at which ``survey`` needs whole rows; −1: the trunk's end."""

    def survey(self, plan: Plan, rows: Rows) -> Survey:
        """The whole upstream vocabulary as one model sees it, by the fast rule."""

    def whole(self, expert: Survey, antiexpert: Survey) -> Whole:
        """The pair's view of the whole upstream vocabulary."""
