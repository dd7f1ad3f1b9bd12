"""Ways to turn a pair's probabilities into offsets of an upstream's candidates: ours and others'.

Every rule is a function (context, candidates as upstream ids, their probabilities upstream) → one
offset in nats each. A pair is anything that answers ``ask(tree, sets)`` with the masses of its
expert and of its anti-expert.
"""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field, replace
from functools import lru_cache
from typing import NamedTuple, Protocol

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps import Bridge, Context, ExactBridge, FastBridge, Masses, Plan, Sets, Tree
from tokenizer_maps.exact import ALWAYS, ESCALATION
from tokenizer_maps.fast import FLOOR

Floats = NDArray[np.float64]
Rule = Callable[[Context, Sequence[int], Floats], Floats]


class Pair(Protocol):
    """An expert and an anti-expert over one vocabulary."""

    def ask(self, tree: Tree, sets: Sets) -> Sequence[Masses]:
        """The masses of the expert and of the anti-expert."""


@dataclass(frozen=True)
class Bridged:
    """A bridge in the steps that the service takes; both models read one rendering."""

    bridge: Bridge
    pair: Pair
    deepened: list[bool] = field(default_factory=list)

    def __call__(self, context: Context, candidates: Sequence[int], chances: Floats) -> Floats:
        plan = self.bridge.plan(context)
        sets = self.bridge.sets(plan, candidates, chances)
        masses = self.pair.ask(plan.tree, sets)
        deeper = self.bridge.deeper(plan, sets, masses)
        self.deepened.append(deeper is not None)
        if deeper is not None:
            plan, sets = deeper, self.bridge.sets(deeper, candidates, chances)
            masses = self.pair.ask(plan.tree, sets)
        return self.bridge.offsets(*(self.bridge.reading(plan, sets, m) for m in masses)).delta


def rules(fast: FastBridge, pair: Pair, prune: float) -> dict[str, Rule]:
    """All rules by name; ``prune``: the mass, relative to the text's own, not to follow further."""
    exact = ExactBridge(fast.map, fast.pair_end, fast.clamp, above=ALWAYS)
    return {
        "fast": Bridged(fast, pair),
        "exact": Bridged(exact, pair),
        "auto": Bridged(replace(exact, above=ESCALATION), pair),
        "prefix": BytePrefix(fast, pair, prune),
        "string": OneToken(fast, pair, shorten=False),
        "first_subtoken": OneToken(fast, pair, shorten=True),
        "unsteered": lambda _, candidates, __: np.zeros(len(candidates)),
    }


@dataclass(frozen=True)
class OneToken:
    """The pair token whose string is the candidate's.

    Where there is none: with ``shorten`` the candidate's first sub-token (UniTE), else offset 0.
    """

    bridge: FastBridge
    pair: Pair
    shorten: bool

    def __call__(self, context: Context, candidates: Sequence[int], chances: Floats) -> Floats:
        plan = self.bridge.plan(context)
        found = [(j, token) for j, c in enumerate(candidates) for token in self._tokens(c)]
        sets = _sets([(plan.heads[0].node, np.array([token])) for _, token in found])
        delta = np.zeros(len(candidates))
        expert, antiexpert = self.pair.ask(plan.tree, sets)
        delta[[j for j, _ in found]] = expert.sets - antiexpert.sets
        return _clamped(self.bridge, delta)

    def _tokens(self, candidate: int) -> tuple[int, ...]:
        token = self.bridge.map.upstream.tokens[candidate]
        same = self.bridge.map.pair.id_of(token)
        if same is not None:
            return (same,)
        return self.bridge.map.pair.encode(token)[:1] if self.shorten else ()


class _Part(NamedTuple):
    """What candidate ``owner`` still needs after ``node``: the bytes ``rest``.

    The first ``inside`` of them belong to the text; ``written`` is all before ``rest``. ``weights``
    are the log masses of the path in both models.
    """

    owner: int
    node: int
    rest: bytes
    inside: int
    written: bytes
    weights: tuple[float, ...]


@dataclass(frozen=True)
class BytePrefix:
    """P(the text goes on with the candidate's bytes), over all canonical ways to spell it."""

    bridge: FastBridge
    pair: Pair
    prune: float

    def __call__(self, context: Context, candidates: Sequence[int], chances: Floats) -> Floats:
        plan = self.bridge.plan(context)
        paths = _Growing(
            plan.tree, lru_cache(1024)(self.bridge.map.pair.encode), len(context.fixed)
        )
        mass = np.full((2, len(candidates)), np.log(FLOOR))
        parts = self._begin(plan, context, candidates)
        while parts:
            parts = self._expand(paths, parts, mass)
        return _clamped(self.bridge, mass[0] - mass[1])

    def _begin(self, plan: Plan, context: Context, candidates: Sequence[int]) -> list[_Part]:
        upstream = self.bridge.map.upstream
        text = context.prompt + upstream.decode(context.generated)
        masses = self.pair.ask(plan.tree, _sets([]))
        logs = [[m.nodes[list(head.path_nodes)].sum() for head in plan.heads] for m in masses]
        parts = []
        for h, head in enumerate(plan.heads):
            weights = tuple(float(log[h] - log[0]) for log in logs)
            before = text[: len(text) - len(head.rest)]
            for j, c in enumerate(candidates):
                rest = head.rest + upstream.tokens[c]
                parts.append(_Part(j, head.node, rest, len(head.rest), before, weights))
        return parts

    def _expand(self, paths: "_Growing", parts: list[_Part], mass: Floats) -> list[_Part]:
        """Add what the tokens over all of the rest weigh; the shorter ones lead to new parts."""
        tables = self.bridge.map
        asked: list[tuple[int, NDArray[np.int64]]] = []
        found: list[tuple[_Part, int | None]] = []
        for part in parts:
            low, high = tables.span(part.rest)
            if low < high:
                asked.append((part.node, tables.order[low:high]))
                found.append((part, None))
            for token in self._inner(paths, part):
                asked.append((part.node, np.array([token])))
                found.append((part, token))
        answers = self.pair.ask(paths.tree(), _sets(asked))
        following = []
        for s, (part, inner) in enumerate(found):
            logs = [w + m.sets[s] for w, m in zip(part.weights, answers, strict=True)]
            if inner is None:
                mass[:, part.owner] = np.logaddexp(mass[:, part.owner], logs)
            elif max(logs) > np.log(self.prune):
                following.append(self._step(paths, part, inner, logs))
        return following

    def _inner(self, paths: "_Growing", part: _Part) -> Iterator[int]:
        """The tokens that end inside the candidate, where the path stays canonical."""
        for length in range(part.inside + 1, len(part.rest)):
            token = self.bridge.map.pair.id_of(part.rest[:length])
            if token is not None and paths.canonical(part, token, length):
                yield token

    def _step(self, paths: "_Growing", part: _Part, token: int, logs: list[float]) -> _Part:
        length = len(self.bridge.map.pair.tokens[token])
        written = part.written + part.rest[:length]
        node = paths.grow(part.node, token)
        return _Part(part.owner, node, part.rest[length:], 0, written, tuple(logs))


class _Growing:
    """A tree that takes new branches."""

    def __init__(self, tree: Tree, encode: Callable[[bytes], tuple[int, ...]], fixed: int) -> None:
        self._trunk, self._encode, self._fixed = tree.trunk, encode, fixed
        branches = zip(tree.parents, tree.tokens, strict=True)
        self._nodes = {branch: i for i, branch in enumerate(branches)}
        self._paths = {-1: tree.trunk}
        for (parent, token), i in self._nodes.items():
            self._paths[i] = (*self._paths[parent], token)

    def tree(self) -> Tree:
        """The tree so far."""
        parents, tokens = zip(*self._nodes, strict=True) if self._nodes else ((), ())
        return Tree(self._trunk, tokens, parents)

    def grow(self, parent: int, token: int) -> int:
        """The node of ``token`` after ``parent``."""
        node = self._nodes.setdefault((parent, token), len(self._nodes))
        self._paths[node] = (*self._paths[parent], token)
        return node

    def canonical(self, part: _Part, token: int, length: int) -> bool:
        """Whether the tokenizer itself ends in ``token`` here, ``length`` bytes into the rest."""
        path = (*self._paths[part.node][self._fixed :], token)
        return self._encode(part.written + part.rest[:length]) == path


def _clamped(bridge: FastBridge, delta: Floats) -> Floats:
    return np.clip(delta, -bridge.clamp.offset, bridge.clamp.offset)


def _sets(wanted: Sequence[tuple[int, NDArray[np.integer]]]) -> Sets:
    """Sums to ask a pair for: of some ids after a node."""
    none, order = np.zeros(0, np.bool_), np.arange(len(wanted))
    return Sets(
        nodes=np.array([node for node, _ in wanted], np.int64),
        ptr=np.cumsum([0, *(len(ids) for _, ids in wanted)]),
        ids=np.concatenate([np.zeros(0, np.int64), *(ids for _, ids in wanted)]),
        sums=order,
        owners=order,
        roles=np.zeros_like(order),
        end=none,
        multi=none,
        capped=none,
    )
