"""Checkpoints: what a killed tuning goes on from."""

import json
import shutil
from pathlib import Path

FOLDER = "checkpoints"
STATE = "trainer_state.json"


def last_checkpoint(folder: Path) -> Path | None:
    """The furthest checkpoint that was written to its end; what is broken is removed.

    transformers writes a checkpoint's state last, so a state that can be read tells it is whole.
    """
    found = sorted(folder.glob("checkpoint-*"), key=_step, reverse=True)
    for checkpoint in found:
        try:
            json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            shutil.rmtree(checkpoint)
        else:
            return checkpoint
    return None


def has_ended(checkpoint: Path) -> bool:
    """Whether the training was over with it: all steps done, or ended early."""
    state = json.loads((checkpoint / STATE).read_text(encoding="utf-8"))
    control = state["stateful_callbacks"]["TrainerControl"]
    return bool(control["args"]["should_training_stop"])


def _step(checkpoint: Path) -> int:
    return int(checkpoint.name.rpartition("-")[2])
