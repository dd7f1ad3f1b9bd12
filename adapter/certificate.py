"""Certificates: whether hidden tokens can have mattered at a step, and which ones could.

Of a hidden token it is known that ℓ(v) ≤ min(floor, ln h), and that its offset is at most the
bridge's clamp, or what the pair's whole view allows. That bounds the true upstream's tail; the
imputed tail is a guess and is never used here.
"""

import math
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace

import numpy as np

from adapter.candidates import Candidate, Position, rank
from adapter.request import Sampling
from adapter.steering import Adapted, Flags, Floats, Ints, Whole, adjustment, log_sum, moved

NEGLIGIBLE = 1e-3
"""The share of the adapted mass that may stay hidden from a certified draw."""

CONTENDERS = 16
"""How many hidden tokens are named at most."""


@dataclass(frozen=True, slots=True)
class Certificate:
    """Whether a step is what the upstream's whole vocabulary would have given.

    `hidden_max` bounds the hidden tokens' share of the adapted mass, after temperature and before
    top_p; None for a greedy step, or where nothing bounds it. `contenders`: hidden ids that may
    change the step, the strongest first, cut to a few; empty where nobody can tell them apart.
    """

    certified: bool
    hidden_max: float | None = None
    contenders: tuple[int, ...] = ()


@dataclass(frozen=True, slots=True)
class Tail:
    """What is known of hidden tokens at strength `alpha`.

    `whole` and `hideable` as for `steer`; `clamp`: the largest |offset| of any token in nats, ∞
    where the bridge has none; `margin`: what rounding may hide, in nats of an entry and in mass.
    `lost`: the scores of candidates that were shown and may not come out, as good as hidden.
    """

    alpha: float
    whole: Whole | None = None
    hideable: Flags | None = None
    clamp: float = math.inf
    margin: float = 0.0
    lost: Floats = field(default_factory=lambda: np.zeros(0))

    def mass(self, position: Position) -> float:
        """The most that is hidden."""
        return position.hidden + self.margin

    def bound(self, position: Position) -> float:
        """The highest log-probability a hidden token can have upstream."""
        mass = self.mass(position)
        return min(position.floor + self.margin, math.log(mass) if mass > 0.0 else -math.inf)

    def hidden(self, position: Position) -> Ints | None:
        """The ids that are not shown, ascending; None where nobody can list them."""
        if self.hideable is not None:
            found = self.hideable.copy()
        elif self.whole is not None:
            found = np.ones(len(self.whole.high), np.bool_)
        else:
            return None
        found[[c.id for c in position.candidates if c.id is not None]] = False
        return np.flatnonzero(found)

    def lift(self) -> float:
        """The most that an offset adds to any score."""
        return abs(self.alpha) * self.clamp if self.alpha else 0.0

    def lifts(self, hidden: Ints) -> Floats | None:
        """The most that its offset adds to each hidden token's score; None where unknown."""
        if not self.alpha:
            return np.zeros(len(hidden))
        if self.whole is None or self.alpha < 0.0:
            return None
        return np.minimum(self.alpha * self.whole.high[hidden], self.lift())


def certify(
    adapted: Adapted,
    scores: Floats,
    sampling: Sampling,
    counts: Mapping[int, int],
    tail: Tail,
    most: int = CONTENDERS,
) -> Certificate:
    """What is certain of a draw from `scores`, those of `penalised` with the same `counts`.

    Greedy: certified if no hidden token reaches the best of those shown. Sampling: if hidden
    tokens have a negligible share; above temperature 1 never.
    """
    position = adapted.position
    shown = scores[: len(position.candidates)]
    view = _View(position, tail, _moves(position, sampling, counts), most)
    if sampling.greedy:
        own = not tail.alpha and (shown == adapted.upstream[: len(shown)]).all()
        return view.greedy(float(shown.max()), bool(own))
    return view.sampled(log_sum(shown / sampling.temperature), sampling.temperature)


def expanded(
    position: Position,
    exact: Mapping[int, float],
    of_id: Callable[[int, float], Candidate | None],
) -> Position:
    """The position with exactly scored hidden tokens among its candidates.

    `exact`: log-probabilities by id, in nats; `of_id` names a token. Less is hidden then; the floor
    still bounds the rest.
    """
    shown = {c.id for c in position.candidates}
    named = [of_id(i, logprob) for i, logprob in exact.items() if i not in shown]
    joined = [candidate for candidate in named if candidate is not None]
    mass = math.fsum(math.exp(candidate.logprob) for candidate in joined)
    ordered = sorted((*position.candidates, *joined), key=rank)
    return replace(position, candidates=tuple(ordered), hidden=max(0.0, position.hidden - mass))


@dataclass(frozen=True, slots=True)
class _View:
    """One step's hidden tokens; `moves`: what bias and penalties add to some of them, by id."""

    position: Position
    tail: Tail
    moves: Mapping[int, float]
    most: int

    def greedy(self, best: float, own: bool) -> Certificate:
        """Against the best score shown; `own`: the scores shown are the upstream's own."""
        bound, ids = self.tail.bound(self.position), self._ids()
        if self.tail.lost.max(initial=-math.inf) >= best:
            return Certificate(False)
        if own and not self._up() and self.position.floor <= best:
            return Certificate(True)  # the upstream's own favourite
        if self._none(ids) or bound + self.tail.lift() + self._up() < best:
            return Certificate(True)
        reach = None if ids is None else self._reach(ids)
        if ids is None or reach is None:
            return Certificate(False)
        able = np.flatnonzero(bound + reach >= best)
        return Certificate(not len(able), None, self._strongest(ids[able], reach[able]))

    def sampled(self, shown: float, temperature: float) -> Certificate:
        """Against ln Σ exp(score/τ) of those shown.

        A hidden token adds (m·e^reach)^(1/τ) for its mass m. For τ ≤ 1 that is most where the mass
        lies on as few tokens as their bound allows, on those of highest reach.
        """
        if temperature > 1.0:
            return Certificate(False)
        bound, ids = self.tail.bound(self.position), self._ids()
        lost = log_sum(self.tail.lost / temperature)
        if self._none(ids):
            share = _share(lost, shown) if len(self.tail.lost) else 0.0
            return Certificate(share <= NEGLIGIBLE, share)
        count = self.tail.mass(self.position) / math.exp(bound)
        reach = self.tail.lift() + self._up()
        loose = math.log(count) + (bound + reach) / temperature
        share = _share(float(np.logaddexp(loose, lost)), shown)
        each = None if ids is None or share <= NEGLIGIBLE else self._reach(ids)
        if ids is None or each is None:
            known = None if math.isinf(reach) else share
            return Certificate(share <= NEGLIGIBLE, known)
        full = min(math.ceil(count), len(each))
        top = -np.sort(-np.partition(each, len(each) - full)[len(each) - full :])
        weights = np.clip(count - np.arange(full), 0.0, 1.0)
        with np.errstate(divide="ignore"):
            most = log_sum((bound + top) / temperature + np.log(weights))
        share = _share(float(np.logaddexp(most, lost)), shown)
        if share <= NEGLIGIBLE:
            return Certificate(True, share)
        return Certificate(False, share, self._strongest(ids, each))

    def _ids(self) -> Ints | None:
        return self.tail.hidden(self.position)

    def _none(self, ids: Ints | None) -> bool:
        """Whether nothing is hidden."""
        return self.tail.mass(self.position) <= 0.0 or (ids is not None and not len(ids))

    def _up(self) -> float:
        """The most that bias and penalties add to a hidden token."""
        return max(0.0, *self.moves.values()) if self.moves else 0.0

    def _reach(self, ids: Ints) -> Floats | None:
        """The most that offset, bias and penalties add to each hidden token; None where unknown."""
        lifts = self.tail.lifts(ids)
        if lifts is None:
            return None
        for token, move in self.moves.items():
            at = int(np.searchsorted(ids, token))
            if at < len(ids) and ids[at] == token:
                lifts[at] += move
        return lifts

    def _strongest(self, ids: Ints, reach: Floats) -> tuple[int, ...]:
        """The ids of highest reach, then the lower id; none where none are wanted."""
        if not self.most:
            return ()
        some = np.arange(len(ids))
        if len(ids) > self.most:
            least = np.partition(reach, len(ids) - self.most)[len(ids) - self.most]
            some = np.flatnonzero(reach >= least)
        order = np.argsort(-reach[some], kind="stable")[: self.most]
        return tuple(ids[some[order]].tolist())


def _share(hidden: float, shown: float) -> float:
    """The hidden part of two masses given in nats."""
    if shown == -math.inf:
        return 1.0
    return float(np.exp(hidden - np.logaddexp(hidden, shown))) if hidden < math.inf else 1.0


def _moves(position: Position, sampling: Sampling, counts: Mapping[int, int]) -> dict[int, float]:
    """What bias and penalties add to tokens that are not shown."""
    shown = {c.id for c in position.candidates}
    return {
        token: adjustment(token, sampling, counts)
        for token in moved(sampling, counts)
        if token not in shown
    }
