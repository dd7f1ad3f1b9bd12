"""Request: one generation asked for, free of any wire format."""

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Literal


@dataclass(frozen=True, slots=True)
class Message:
    """One turn of a chat; `content` is plain text."""

    role: str
    content: str


@dataclass(frozen=True, slots=True)
class Chat:
    """Turns so far; the answer is the assistant's next."""

    messages: tuple[Message, ...]


Prompt = str | tuple[int, ...] | Chat
"""Text, ids of the upstream's vocabulary, or a chat."""

Lookahead = int | Literal["auto", "stream"]
"""Tokens asked for at once: a number, the cheapest one, or all that are left as a stream."""

LONGEST = 256
"""Tokens asked for at once at most."""

Trace = Literal["off", "steps", "candidates"]

Echo = Literal["off", "text", "scores"]
"""Whether the prompt is given back in front of the answer, and with it how likely it is."""

CacheUse = Literal["use", "refresh", "bypass"]
"""Of what the upstream showed before: read and write, write only, or neither."""


@dataclass(frozen=True, slots=True)
class Sampling:
    """How tokens are drawn; the field names and meanings are OpenAI's.

    A `temperature` below 1e-5 is greedy, as engines have it. `logit_bias` maps upstream token ids
    to nats added to a score. `seed` None draws a fresh one.
    """

    max_tokens: int = 16
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    logit_bias: Mapping[int, float] = field(default_factory=dict)

    @property
    def greedy(self) -> bool:
        """Whether the best score is taken, without noise."""
        return self.temperature < 1e-5


@dataclass(frozen=True, slots=True)
class Request:
    """One generation: `alpha`, `weights` and `lookahead` None mean the model's own settings.

    `shown` is the number of candidates each step carries (0 = none). With `choices` the answer is
    the likeliest of these labels, and nothing is drawn. Cache entries are shared by requests of
    the same `tenant` only.
    """

    model: str
    prompt: Prompt
    sampling: Sampling = Sampling()
    n: int = 1
    alpha: float | None = None
    weights: Mapping[str, float] | None = None
    lookahead: Lookahead | None = None
    trace: Trace = "off"
    shown: int = 0
    echo: Echo = "off"
    choices: tuple[str, ...] = ()
    cache: CacheUse = "use"
    tenant: str | None = None
