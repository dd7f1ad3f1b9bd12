"""What each upstream dialect can be trusted to show."""

from dataclasses import dataclass


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an upstream shows of itself.

    `end_visible`: tokens that end the text are among the candidates. `every_step_shown`: each
    token of a run comes with its candidates, so that a run can only be cut at its end.
    """

    end_visible: bool
    every_step_shown: bool


COMPLETIONS = Capabilities(end_visible=True, every_step_shown=True)
"""Classic /v1/completions with vLLM's extras."""

LLAMACPP = Capabilities(end_visible=True, every_step_shown=False)
"""llama.cpp's server: a token that ends inside a character comes without candidates."""
