"""What each upstream dialect can be trusted to show."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an upstream shows of itself.

    `end_visible`: tokens that end the text are among the candidates. `every_step_shown`: each
    token of a run comes with its candidates, so that a run can only be cut at its end.
    `rejection`: a sampled run is drawn from the very distributions shown, at every step.
    `scoring`: how the log-probabilities of chosen tokens can be had, if at all: many in one call,
    or by forcing one token a call. `streams`: it stops working when the connection is closed.
    `margin`: rounding error of the shown mass for each candidate, at least 1e-6.
    """

    end_visible: bool
    every_step_shown: bool
    rejection: bool
    scoring: Literal["chosen", "forced"] | None
    streams: bool
    margin: float


COMPLETIONS = Capabilities(
    end_visible=True,
    every_step_shown=True,
    rejection=True,
    scoring="chosen",
    streams=True,
    margin=1e-6,
)
"""Classic /v1/completions with vLLM's extras; log-probabilities are float32 and printed whole."""

LLAMACPP = Capabilities(
    end_visible=True,
    every_step_shown=False,
    rejection=False,
    scoring="forced",
    streams=True,
    margin=1e-6,
)
"""llama.cpp's server: a token that ends inside a character comes without candidates."""
