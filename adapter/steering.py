"""The heart: from a position and its offsets to the adapted distribution and a draw.

    s(c) = ℓ(c) + α·Δ(c)                                    (Equation 1)
    log p(c) = s(c) − log(Σ_C eˢ + Σ_hidden eˢ)

Hidden tokens: where the pair's whole view is given, each gets ℓ̂(v), the anti-expert's share of the
hidden mass, and is an entry like the candidates. Else the hidden mass keeps Δ = 0, in one lump.
Pure functions; a draw applies logit_bias and penalties, then temperature, then top_p.
"""

import hashlib
import math
from collections import Counter
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from adapter.candidates import Candidate, Position
from adapter.request import Sampling

Floats = NDArray[np.float64]
Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]
Words = NDArray[np.uint64]

BANNED = -100.0
"""The logit_bias that forbids a token whatever its score (OpenAI's documented meaning)."""


class Whole(Protocol):
    """What the pair makes of every upstream token, by id, in nats (tokenizer_maps' Whole)."""

    @property
    def prior(self) -> Floats:
        """The anti-expert's log-probability up to a constant, −inf for what it cannot give."""

    @property
    def delta(self) -> Floats:
        """The offset, 0 where the pair cannot score a token."""

    @property
    def high(self) -> Floats:
        """Bounds the offset from above."""


@dataclass(frozen=True, slots=True)
class Adapted:
    """The adapted distribution of one position; one entry a token, nats.

    The entries are the k candidates in the position's order, then the imputed hidden tokens by
    ascending id, if any. `ids` are the upstream's, −1 unknown; `upstream` is ℓ, or ℓ̂ where imputed;
    `scores` are s before any filter; `logprobs` are normalised with the whole tail kept.
    """

    position: Position
    ids: Ints
    upstream: Floats
    offsets: Floats
    scores: Floats
    logprobs: Floats

    def imputed(self, entry: int) -> bool:
        """Whether an entry is a hidden token."""
        return entry >= len(self.position.candidates)

    def candidate(
        self, entry: int, of_id: Callable[[int, float], Candidate | None]
    ) -> Candidate | None:
        """An entry as a candidate; `of_id` names a hidden token from its id and ℓ̂."""
        if self.imputed(entry):
            return of_id(int(self.ids[entry]), float(self.upstream[entry]))
        return self.position.candidates[entry]

    def words(self, vocabulary: Words | None = None) -> Words:
        """The word of every entry, for `noise`; `vocabulary` holds one by id where it is known."""
        candidates = self.position.candidates
        if vocabulary is None:
            return token_words((c.token, c.special) for c in candidates)
        found: Words = vocabulary[self.ids]
        for i in np.flatnonzero(self.ids[: len(candidates)] < 0).tolist():
            found[i] = token_words([(candidates[i].token, candidates[i].special)])[0]
        return found


def steer(
    position: Position,
    offsets: Floats,
    alpha: float,
    whole: Whole | None = None,
    hideable: Flags | None = None,
) -> Adapted:
    """Equation 1 over one position.

    `offsets` holds one Δ a candidate, in nats. With `whole` the hidden tail is imputed: every token
    that is `hideable` (by id: real tokens; None = all), not shown, and that the anti-expert can
    give. With α = 0 the upstream's own numbers come back, and nothing is imputed.
    """
    candidates = position.candidates
    ids = np.array([-1 if c.id is None else c.id for c in candidates], np.int64)
    upstream = np.array([c.logprob for c in candidates])
    if not alpha:
        return Adapted(position, ids, upstream, offsets, upstream, upstream)
    hidden = _hidden(position, whole, hideable, ids)
    if whole is None or not len(hidden):
        scores = upstream + alpha * offsets
        lump = math.log(position.hidden) if position.hidden > 0.0 else -math.inf
        norm = float(np.logaddexp(log_sum(scores), lump))
        return Adapted(position, ids, upstream, offsets, scores, scores - norm)
    upstream = np.concatenate([upstream, impute(whole.prior[hidden], position)])
    offsets = np.concatenate([offsets, whole.delta[hidden]])
    scores = upstream + alpha * offsets
    ids = np.concatenate([ids, hidden])
    return Adapted(position, ids, upstream, offsets, scores, scores - log_sum(scores))


def impute(prior: Floats, position: Position) -> Floats:
    """ℓ̂ of hidden tokens: min(floor, prior + c), with the c that gives them the hidden mass.

    What the floor cuts from the likeliest the others get: so α → 0 leads to the upstream's own
    numbers. Only where all lie at the floor is mass left over.
    """
    top, most = float(prior.max()), math.exp(position.floor)
    mass = np.exp(prior - top)
    scale, held = position.hidden / float(mass.sum()), 0
    while int(np.count_nonzero(over := mass > most / scale)) > held:
        held, rest = int(np.count_nonzero(over)), float(mass @ ~over)
        if rest > 0.0:
            scale = max(scale, (position.hidden - held * most) / rest)
    return np.minimum(prior + (math.log(scale) - top), position.floor)


def _hidden(position: Position, whole: Whole | None, hideable: Flags | None, shown: Ints) -> Ints:
    """The ids to impute, ascending."""
    if whole is None or position.hidden <= 0.0:
        return np.zeros(0, np.int64)
    found = np.isfinite(whole.prior)
    if hideable is not None:
        found &= hideable
    found[shown[shown >= 0]] = False
    return np.flatnonzero(found)


def log_sum(values: Floats) -> float:
    """ln Σ exp(values); −inf for none."""
    top = float(values.max(initial=-math.inf))
    if not math.isfinite(top):
        return top
    return top + math.log(float(np.exp(values - top).sum()))


def penalised(adapted: Adapted, sampling: Sampling, counts: Mapping[int, int]) -> Floats:
    """Scores after logit_bias and the presence and frequency penalties, one an entry.

    `counts` says how often each upstream id was generated so far.
    """
    scores = adapted.scores.copy()
    for token in moved(sampling, counts):
        scores[_entries(adapted, token)] += adjustment(token, sampling, counts)
    return scores


def bar(adapted: Adapted, scores: Floats, barred: Flags | None) -> tuple[Floats, Floats]:
    """Scores with what may not come out at −∞, and the scores that candidates have lost by it."""
    if barred is None or not barred.any():
        return scores, np.zeros(0)
    shown = len(adapted.position.candidates)
    return np.where(barred, -math.inf, scores), scores[:shown][barred[:shown]]


def moved(sampling: Sampling, counts: Mapping[int, int]) -> set[int]:
    """The upstream ids whose scores logit_bias or penalties change."""
    penalties = sampling.presence_penalty or sampling.frequency_penalty
    return {*sampling.logit_bias, *(counts if penalties else ())}


def adjustment(token: int, sampling: Sampling, counts: Mapping[int, int]) -> float:
    """What logit_bias and penalties add to the score of an upstream id; −inf bans it."""
    bias, count = sampling.logit_bias.get(token, 0.0), counts.get(token, 0)
    if bias <= BANNED:
        return -math.inf
    presence = sampling.presence_penalty if count else 0.0
    return bias - sampling.frequency_penalty * count - presence


def _entries(adapted: Adapted, token: int) -> list[int]:
    """The entries of an upstream id, one at most; unknown ids have none."""
    if token < 0:
        return []
    shown = len(adapted.position.candidates)
    found = np.flatnonzero(adapted.ids[:shown] == token).tolist()
    at = shown + int(np.searchsorted(adapted.ids[shown:], token))
    if not found and at < len(adapted.ids) and adapted.ids[at] == token:
        return [at]
    return found


def hidden_wishes(position: Position, logit_bias: Mapping[int, float]) -> tuple[int, ...]:
    """The ids a client raised by logit_bias that the upstream did not show."""
    if not logit_bias:
        return ()
    shown = {c.id for c in position.candidates}
    return tuple(i for i, bias in logit_bias.items() if bias > 0.0 and i not in shown)


# --- drawing


def draw(adapted: Adapted, scores: Floats, sampling: Sampling, noise: Floats | None) -> int:
    """The entry drawn: the best score at temperature 0, else argmax(s/τ + G) inside the nucleus.

    `scores` come from `penalised`, `noise` from `noise`: one an entry. Ties go to the higher ℓ,
    then the lower id. Raises ValueError where every score is −∞.
    """
    if not scores.max(initial=-math.inf) > -math.inf:
        raise ValueError("every candidate is banned")
    if noise is None or sampling.greedy:
        return best(adapted, scores)
    return _race(adapted, filtered(adapted, scores, sampling), noise)


def best(adapted: Adapted, scores: Floats) -> int:
    """The entry with the highest score; of equals the higher ℓ, then the lower id."""
    top = np.flatnonzero(scores == scores.max())
    return int(top[_ranked(adapted, scores, top)[0]])


def filtered(adapted: Adapted, scores: Floats, sampling: Sampling) -> Floats:
    """Scores over the temperature, −∞ outside the nucleus; not normalised."""
    return nucleus(adapted, scores / sampling.temperature, sampling.top_p)


def nucleus(adapted: Adapted, scores: Floats, top_p: float) -> Floats:
    """Scores with everything outside the smallest set of mass ≥ top_p at −∞."""
    if top_p >= 1.0:
        return scores
    mass = np.exp(scores - log_sum(scores))
    # What is rarer than this adds up to less than 1 − top_p: the nucleus does without it.
    some = np.flatnonzero(mass >= min((1.0 - top_p) / len(mass) * (1 - 1e-9), mass.max()))
    order = some[_ranked(adapted, scores, some)]
    before = np.cumsum(mass[order]) - mass[order]
    inside = order[before < top_p]
    kept = np.full_like(scores, -math.inf)
    kept[inside] = scores[inside]
    kept[order[0]] = scores[order[0]]
    return kept


def _ranked(adapted: Adapted, scores: Floats, entries: Ints) -> Ints:
    """The order of some entries: by score, by ℓ, by id."""
    return np.lexsort((adapted.ids[entries], -adapted.upstream[entries], -scores[entries]))


def _race(adapted: Adapted, scores: Floats, noise: Floats) -> int:
    """argmax(scores + G), with logarithms taken only where an entry can still win."""
    first = int(np.argmax(scores))
    bar = scores[first] + gumbel(noise[first])
    # −log(−log u) ≥ bar − s, solved for u; the slack covers rounding.
    able = np.flatnonzero(noise >= np.exp(-np.exp(scores - bar)) * (1.0 - 1e-9))
    raced = np.full(len(scores), -math.inf)
    raced[able] = scores[able] + gumbel(noise[able])
    return best(adapted, raced)


def gumbel(noise: Floats) -> Floats:
    """Standard Gumbel variates from uniform ones."""
    return -np.log(-np.log(noise))


def noise(seed: int, choice: int, position: int, words: Words) -> Floats:
    """A uniform variate in (0, 1) for every word, a function of its arguments alone.

    Counter-based: independent of the tokens' order, their number, and of earlier draws.
    """
    counter = b"".join(int(n).to_bytes(8, "big", signed=True) for n in (seed, choice, position))
    digest = hashlib.blake2b(counter, digest_size=16).digest()
    first, second = np.frombuffer(digest, "<u8")
    mixed = _mix(_mix(words ^ first) + second)
    # 52 bits as the fraction of a float in [1, 2): 0 and 1 themselves never come.
    mixed >>= np.uint64(12)
    mixed |= np.uint64(0x3FF0000000000000)
    return mixed.view(np.float64) - (1.0 - 2.0**-53)


def _mix(words: Words) -> Words:
    """The finaliser of splitmix64: every bit of a word decides over every bit of the result."""
    mixed = words ^ (words >> np.uint64(30))
    mixed *= np.uint64(0xBF58476D1CE4E5B9)
    mixed ^= mixed >> np.uint64(27)
    mixed *= np.uint64(0x94D049BB133111EB)
    mixed ^= mixed >> np.uint64(31)
    return mixed


def token_words(names: Iterable[tuple[bytes, str | None]]) -> Words:
    """64 bits for each token, given as (bytes, special class): what its noise is made of.

    The second and later tokens of one name get others than the first: they are not one token.
    Compute them once for a vocabulary, by id.
    """
    seen: Counter[bytes] = Counter()
    words = bytearray()
    for token, special in names:
        name = b"\x01" + special.encode() if special else b"\x00" + token
        salt = seen[name].to_bytes(16, "big")
        words += hashlib.blake2b(name, digest_size=8, salt=salt).digest()
        seen[name] += 1
    return np.frombuffer(bytes(words), "<u8").astype(np.uint64)
