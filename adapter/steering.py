"""The heart: from a position and its offsets to the adapted distribution and a draw.

    s(c) = ℓ(c) + α·Δ(c)                                    (Equation 1 over the candidates)
    log p(c) = s(c) − log(Σ_C eˢ + h)                       (hidden mass h keeps Δ = 0)

Pure functions; a draw applies logit_bias and penalties, then temperature, then top_p.
"""

import hashlib
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from adapter.candidates import Candidate, Position
from adapter.request import Sampling

Floats = NDArray[np.float64]

BANNED = -100.0
"""The logit_bias that forbids a token whatever its score (OpenAI's documented meaning)."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted distribution over a position's candidates, in their order; nats.

    `scores` are s(c), before any filter; `logprobs` are normalised with the hidden mass kept.
    """

    position: Position
    offsets: Floats
    scores: Floats
    logprobs: Floats


def steer(position: Position, offsets: Floats, alpha: float) -> Adapted:
    """Equation 1 over the candidates of one position.

    `offsets` holds one Δ a candidate, in nats. With α = 0 the upstream's own numbers come back.
    """
    upstream = np.array([c.logprob for c in position.candidates])
    scores = upstream + alpha * offsets if alpha else upstream
    hidden = math.log(position.hidden) if position.hidden > 0.0 else -math.inf
    norm = float(np.logaddexp(np.logaddexp.reduce(scores), hidden)) if alpha else 0.0
    return Adapted(position, offsets, scores, scores - norm)


def penalised(adapted: Adapted, sampling: Sampling, counts: Mapping[int, int]) -> Floats:
    """Scores after logit_bias and the presence and frequency penalties.

    `counts` says how often each upstream id was generated so far.
    """
    scores = adapted.scores.copy()
    if not (sampling.logit_bias or counts):
        return scores
    for i, candidate in enumerate(adapted.position.candidates):
        if candidate.id is None:
            continue
        bias = sampling.logit_bias.get(candidate.id, 0.0)
        count = counts.get(candidate.id, 0)
        scores[i] += -math.inf if bias <= BANNED else bias
        scores[i] -= sampling.frequency_penalty * count
        scores[i] -= sampling.presence_penalty if count else 0.0
    return scores


def hidden_wishes(position: Position, logit_bias: Mapping[int, float]) -> tuple[int, ...]:
    """The ids a client raised by logit_bias that the upstream did not show."""
    if not logit_bias:
        return ()
    shown = {c.id for c in position.candidates}
    return tuple(i for i, bias in logit_bias.items() if bias > 0.0 and i not in shown)


def nucleus(scores: Floats, top_p: float) -> Floats:
    """Scores with everything outside the smallest set of mass ≥ top_p at −∞."""
    if top_p >= 1.0:
        return scores
    order = np.argsort(-scores, kind="stable")
    mass = np.exp(scores[order] - np.logaddexp.reduce(scores))
    before = np.cumsum(mass) - mass
    kept = scores.copy()
    kept[order[before >= top_p]] = -math.inf
    kept[order[0]] = scores[order[0]]
    return kept


def gumbel(seed: int, choice: int, position: int, tokens: Sequence[Candidate]) -> Floats:
    """One standard Gumbel variate a token, a function of its arguments alone.

    Counter-based: independent of the candidates' order, their number, and of earlier draws.
    """
    key = b"".join(int(n).to_bytes(8, "big", signed=True) for n in (seed, choice, position))
    words = [_word(key, c) for c in tokens]
    uniform = (np.array(words, dtype=np.float64) + 0.5) / 2.0**52
    return -np.log(-np.log(uniform))


def _word(key: bytes, token: Candidate) -> int:
    name = b"\x01" + token.special.encode() if token.special else b"\x00" + token.token
    return int.from_bytes(hashlib.blake2b(name, key=key, digest_size=8).digest(), "big") >> 12


def draw(scores: Floats, sampling: Sampling, noise: Floats | None) -> int:
    """The index drawn: the best score at temperature 0, else argmax(s/τ + G) inside the nucleus.

    Candidates come best first and by id where equal, so ties go to the higher ℓ, then lower id.
    Draws are among the candidates alone. Raises ValueError where every score is −∞.
    """
    if not np.isfinite(scores).any():
        raise ValueError("every candidate is banned")
    if noise is None:
        return int(np.argmax(scores))
    return int(np.argmax(nucleus(scores / sampling.temperature, sampling.top_p) + noise))
