"""How to tune; the defaults are those of Liu et al., arXiv 2401.08565, appendix."""

from dataclasses import asdict, dataclass, field
from typing import Any, Literal

FULL_RATE = 2e-5
LORA_RATE = 1e-4
SEQUENCE = 2048


@dataclass(frozen=True, slots=True)
class Lora:
    """Low-rank adapters on all linear layers but the output layer, instead of all weights."""

    rank: int = 64
    alpha: float = 16
    dropout: float = 0.1


@dataclass(frozen=True, slots=True)
class Optimizer:
    """`rate` is the highest learning rate, reached after the share `warm_up` of all steps.

    It falls in a straight line to 0. `fraction` is the share of each tensor that MoFO moves.
    """

    name: Literal["adamw", "mofo"] = "adamw"
    rate: float = FULL_RATE
    weight_decay: float = 0.0
    warm_up: float = 0.04
    fraction: float = 0.1


@dataclass(frozen=True, slots=True)
class Recipe:
    """All that decides the weights, beside base and corpus.

    `batch` rows of at most `sequence` tokens make one step, `micro_batch` of them at a time; None
    is 2048, or all that the base can read.
    The share `held_out` of the documents is only measured on, `checks` times on the way; each
    check leaves a checkpoint. After `patience` checks without a lower loss the tuning ends, and
    the weights with the lowest are kept; 0 never does.
    """

    optimizer: Optimizer = field(default_factory=Optimizer)
    lora: Lora | None = None
    epochs: float = 2.0
    batch: int = 128
    micro_batch: int = 1
    sequence: int | None = None
    held_out: float = 0.02
    checks: int = 10
    patience: int = 0
    seed: int = 0
    bfloat16: bool = False
    gradient_checkpointing: bool = False

    def facts(self) -> dict[str, Any]:
        """As plain JSON values."""
        return asdict(self)
