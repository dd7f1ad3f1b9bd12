"""Stepper: from a position and its offsets to the token that comes out, and how it came about."""

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np

from adapter.budget import Budget
from adapter.candidates import Alternative, Candidate, Position, Step, Usage
from adapter.certificate import Certificate, Tail, certify, expanded
from adapter.decoding.acceptance import accept
from adapter.decoding.frozen import Frozen
from adapter.decoding.generation import Generation
from adapter.errors import BadRequest, BudgetExceeded, UpstreamMalformed
from adapter.pair.reader import Place
from adapter.prefix import Prefix
from adapter.steering import (
    Adapted,
    Floats,
    bar,
    draw,
    filtered,
    hidden_wishes,
    log_sum,
    noise,
    penalised,
    steer,
)
from adapter.upstream.lexicon import Lexicon
from tokenizer_maps.bridge import Offsets
from tokenizer_maps.steps import Whole

_FLAGS = ("unscored", "multi", "clamped", "capped")
"""What a step says of its offset."""


@dataclass(frozen=True, slots=True)
class Where:
    """A place in a text: its prefix, how often each id was generated, the step's number.

    `fresh`: the drafted token there was drawn from what the upstream shows, for this text alone.
    """

    prefix: Prefix
    counts: Mapping[int, int]
    at: int
    fresh: bool


@dataclass(frozen=True, slots=True)
class Taken:
    """What came out: the step without its text, the token, what scoring hidden tokens cost."""

    step: Step
    token: Candidate
    usage: Usage


@dataclass(frozen=True, slots=True)
class _View:
    """The adapted distribution of a position, and what can be said of the hidden tail.

    `masked`: candidates were shown that may not come out.
    """

    adapted: Adapted
    offsets: Offsets
    scores: Floats
    certificate: Certificate
    masked: bool


def place(generated: tuple[int, ...], position: Position, lexicon: Lexicon) -> Place:
    """A position as the pair is asked about it."""
    ids = lexicon.ids(position)
    return Place(generated, ids, tuple(math.exp(c.logprob) for c in position.candidates))


def nothing(position: Position) -> Offsets:
    """Offsets of 0 for every candidate of a position."""
    count = len(position.candidates)
    no = np.zeros(count, dtype=np.bool_)
    return Offsets(np.zeros(count), no, no, no, no)


class Stepper:
    """Takes the steps of one choice; it keeps nothing of the text."""

    def __init__(self, upstream: Frozen, generation: Generation, budget: Budget) -> None:
        self._upstream = upstream
        self._generation = generation
        self._budget = budget
        self._random = np.random.default_rng((generation.seed % 2**64, generation.choice))

    async def step(self, position: Position, offsets: Offsets, where: Where) -> Taken:
        """One step. Raises BadRequest where logit_bias asks for what cannot be had."""
        self._check_wishes(position, where)
        influence, usage = self._generation.influence, Usage()
        whole = await self.whole(position, where)
        view = self._view(position, offsets, whole, where)
        status = "certified" if view.certificate.certified else "truncated"
        contenders = view.certificate.contenders
        if contenders and self._upstream.capabilities.scoring is not None:
            position, offsets, usage = await self._expanded(view, contenders, where)
            view = self._view(position, offsets, whole, where)
            status = "expanded" if view.certificate.certified else "truncated"
        entry = self._drawn(view, where)
        token = view.adapted.candidate(entry, influence.lexicon.of_id)
        if token is None:
            raise RuntimeError("an entry without a name was drawn")
        return Taken(replace(self._step(view, entry, token, where), status=status), token, usage)

    def given(
        self, position: Position, offsets: Offsets, where: Where, whole: Whole | None
    ) -> Step:
        """The step of a token that is given: `position.drafted`, which is among the candidates.

        `whole` is of no account where nothing `needs_whole`. `certified` where hidden tokens have a
        negligible share, which `bounds` tells.
        """
        whole = whole if self.needs_whole(position) else None
        view = self._view(position, offsets, whole, where)
        if position.drafted is None:
            raise ValueError("no token is given")
        step = self._step(view, _drafted(view.adapted), position.drafted, where)
        status = "certified" if view.certificate.certified else "truncated"
        own = (step.logprob, step.logprob)
        bounds = _bounds(view) if self._generation.influence.alpha else own
        return replace(step, status=status, bounds=bounds)

    def needs_whole(self, position: Position) -> bool:
        """Whether the pair's view of what is hidden moves anything."""
        influence = self._generation.influence
        moves = influence.impute and influence.alpha and position.hidden > 0.0
        return influence.reader is not None and bool(moves)

    async def whole(self, position: Position, where: Where) -> Whole | None:
        """The pair's view of what is hidden, where that moves anything."""
        reader = self._generation.influence.reader
        if reader is None or not self.needs_whole(position):
            return None
        return await reader.whole(where.prefix.generated)

    def _view(
        self, position: Position, offsets: Offsets, whole: Whole | None, where: Where
    ) -> "_View":
        influence, sampling = self._generation.influence, self._generation.sampling
        hideable = influence.lexicon.hideable
        adapted = steer(position, offsets.delta, influence.alpha, whole, hideable)
        scores = penalised(adapted, sampling, where.counts)
        scores, lost = bar(adapted, scores, influence.lexicon.barred(where.prefix, adapted))
        margin = self._upstream.capabilities.margin * len(position.candidates)
        tail = Tail(influence.alpha, whole, hideable, influence.limit, margin, lost)
        certificate = certify(adapted, scores, sampling, where.counts, tail, influence.expand)
        return _View(adapted, offsets, scores, certificate, masked=bool(len(lost)))

    async def _expanded(
        self, view: "_View", contenders: Sequence[int], where: Where
    ) -> tuple[Position, Offsets, Usage]:
        """The position with the contenders that the upstream could score, and what that cost."""
        position, reader = view.adapted.position, self._generation.influence.reader
        try:
            exact, usage = await self._upstream.score(where.prefix, contenders, self._budget)
        except BudgetExceeded:
            return position, view.offsets, Usage()
        position = expanded(position, exact, self._generation.influence.lexicon.of_id)
        if reader is None:
            return position, nothing(position), usage
        here = place(where.prefix.generated, position, self._generation.influence.lexicon)
        return position, (await reader.offsets([here]))[0], usage

    def _check_wishes(self, position: Position, where: Where) -> None:
        wishes = hidden_wishes(position, self._generation.sampling.logit_bias)
        if wishes:
            raise BadRequest(
                f"logit_bias raises token {wishes[0]}, which the upstream did not show at step "
                f"{where.at}; raise only tokens among its top candidates, or have it show more "
                "(top_logprobs)",
                param="logit_bias",
            )

    def _drawn(self, view: "_View", where: Where) -> int:
        """The entry that comes out, by the rule that the draft allows."""
        sampling, adapted, scores = self._generation.sampling, view.adapted, view.scores
        try:
            if where.fresh and adapted.position.drafted is not None:
                return self._accepted(adapted, filtered(adapted, scores, sampling))
            return draw(adapted, scores, sampling, self._noise(adapted, where))
        except ValueError as error:
            if view.masked:
                raise UpstreamMalformed(
                    f"at step {where.at} all that the upstream shows are parts of characters, and "
                    "it can only be sent whole ones: have it show more (top_logprobs)"
                ) from error
            raise BadRequest(
                f"logit_bias forbids every candidate at step {where.at}", param="logit_bias"
            ) from error

    def _noise(self, adapted: Adapted, where: Where) -> Floats | None:
        generation = self._generation
        if generation.sampling.greedy:
            return None
        words = adapted.words(generation.influence.lexicon.words)
        return noise(generation.seed, generation.choice, where.at, words)

    def _accepted(self, adapted: Adapted, scores: Floats) -> int:
        """By rejection: the drafted token, or another that makes up for it."""
        position = adapted.position
        source = np.exp(adapted.upstream[: len(position.candidates)])
        target = np.exp(scores - log_sum(scores))
        return accept(target, source, position.hidden, _drafted(adapted), self._random)

    def _step(self, view: "_View", entry: int, token: Candidate, where: Where) -> Step:
        adapted = view.adapted
        imputed = adapted.imputed(entry)
        return Step(
            token=token.token,
            logprob=float(adapted.logprobs[entry]),
            upstream_logprob=float(adapted.upstream[entry]),
            offset=float(adapted.offsets[entry]),
            rank=None if imputed else entry,
            status="certified",
            flags=frozenset(self._flags(view, entry, where.prefix)),
            source="upstream",
            special=token.special,
            shown=self._alternatives(adapted),
        )

    def _flags(self, view: "_View", entry: int, prefix: Prefix) -> Iterator[str]:
        reader, lexicon = self._generation.influence.reader, self._generation.influence.lexicon
        if view.adapted.imputed(entry):
            yield "imputed"
        else:
            yield from (name for name in _FLAGS if getattr(view.offsets, name)[entry])
        if view.masked:
            yield "masked"
        yield from lexicon.flags(prefix)
        if reader is not None and reader.context_cut:
            yield "context_cut"

    def _alternatives(self, adapted: Adapted) -> tuple[Alternative, ...]:
        """The best entries by adapted log-probability, as many as are shown."""
        count, of_id = self._generation.shown, self._generation.influence.lexicon.of_id
        if not count:
            return ()
        floor = np.partition(adapted.logprobs, -min(count, len(adapted.logprobs)))[-count:].min()
        some = np.flatnonzero(adapted.logprobs >= floor)
        best = some[np.argsort(-adapted.logprobs[some], kind="stable")][:count]
        named = ((entry, adapted.candidate(int(entry), of_id)) for entry in best)
        return tuple(
            Alternative(
                token=candidate.token,
                upstream_logprob=candidate.logprob,
                offset=float(adapted.offsets[entry]),
                logprob=float(adapted.logprobs[entry]),
                special=candidate.special,
            )
            for entry, candidate in named
            if candidate is not None
        )


def _bounds(view: "_View") -> tuple[float, float]:
    """The least and the most that the log-probability of a given token can be.

    Its score is exact; the hidden part of the norm is between nothing and the certificate's share.
    """
    adapted, share = view.adapted, view.certificate.hidden_max
    shown = log_sum(adapted.scores[: len(adapted.position.candidates)])
    most = float(adapted.scores[_drafted(adapted)]) - shown
    if share is None or share >= 1.0:
        return -math.inf, most
    return most + math.log1p(-share), most


def _drafted(adapted: Adapted) -> int:
    """The entry of the drafted token; the number of candidates where it was not shown."""
    candidates, drafted = adapted.position.candidates, adapted.position.drafted
    for entry, candidate in enumerate(candidates):
        if drafted is not None and candidate.identity == drafted.identity:
            return entry
    return len(candidates)
