"""Generation: one choice to generate, and what steers it."""

from dataclasses import dataclass

from adapter.decoding.pace import Stride
from adapter.pair.reader import Reader
from adapter.prefix import Prefix
from adapter.request import Sampling
from adapter.upstream.lexicon import Lexicon


@dataclass(frozen=True, slots=True)
class Influence:
    """How strongly to steer, and how far beyond what the upstream shows.

    `reader` None means that no offset is needed (α = 0). `impute`: hidden tokens may be emitted.
    `expand`: how many hidden tokens a step may have scored upstream. `limit`: the largest offset
    the bridge gives, in nats; inf where there is no clamp.
    """

    alpha: float
    reader: Reader | None
    lexicon: Lexicon
    impute: bool
    expand: int
    limit: float


@dataclass(frozen=True, slots=True)
class Generation:
    """One choice: where it begins, how to draw and steer, how many candidates each step shows.

    `choice` of the request's `choices`, which are made one after the other.
    """

    prefix: Prefix
    sampling: Sampling
    influence: Influence
    stride: Stride
    seed: int
    choice: int
    shown: int
    choices: int = 1
