"""Item: what a task asks, one at a time."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Item:
    """A question, or a text that is only scored.

    `name` is its own within its task and stays the same from run to run; equal `group`s are never
    parted when items are split. Choices: `answers` are all options, `right` the places of the right
    ones. Generation: `answers` are all that count as right. A text: `prompt` alone.
    """

    name: str
    prompt: str
    answers: tuple[str, ...] = ()
    right: tuple[int, ...] = ()
    group: str = ""
