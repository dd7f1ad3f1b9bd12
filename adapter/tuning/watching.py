"""What is seen of a training on its way, and what is kept of it."""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from transformers import EarlyStoppingCallback, TrainerCallback, TrainerState

Losses = list[dict[str, float]]
"""Each with its `step` and either `loss`, over the steps before, or `held_out`; nats a token."""


@dataclass(frozen=True, slots=True)
class Moment:
    """How far a training is; losses in nats a token, None before the first."""

    step: int
    steps: int
    loss: float | None
    held_out: float | None


Watch = Callable[[Moment], None]


class Watching(TrainerCallback):
    """Tells `watch` of every step and check, `keep` of the losses at every checkpoint."""

    def __init__(self, watch: Watch, keep: Callable[[Losses], object]) -> None:
        """Both are called between steps and should be quick."""
        self._watch = watch
        self._keep = keep

    def callbacks(self, patience: int) -> list[TrainerCallback]:
        """This one, and the one that ends a training early where that is asked for."""
        return [self, *([EarlyStoppingCallback(patience)] if patience else [])]

    def on_train_begin(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The number of steps is known."""
        self._tell(state)

    def on_step_end(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The weights have moved."""
        self._tell(state)

    def on_evaluate(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """The held-out loss is measured."""
        self._tell(state)

    def on_save(self, args: Any, state: TrainerState, control: Any, **_: Any) -> None:
        """A checkpoint is written."""
        self._keep(losses_of(state))

    def _tell(self, state: TrainerState) -> None:
        last: dict[str, float] = {}
        for loss in losses_of(state):
            last |= loss
        self._watch(
            Moment(state.global_step, state.max_steps, last.get("loss"), last.get("held_out"))
        )


def losses_of(state: TrainerState) -> Losses:
    """All losses so far, those before a kill among them."""
    names = {"loss": "loss", "eval_loss": "held_out"}
    return [
        {"step": int(entry["step"]), names[key]: round(float(entry[key]), 6)}
        for entry in state.log_history
        for key in names
        if key in entry
    ]
