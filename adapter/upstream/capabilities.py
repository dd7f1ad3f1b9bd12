"""What each upstream can be trusted to show."""

from dataclasses import dataclass
from typing import Literal


@dataclass(frozen=True, slots=True)
class Capabilities:
    """What an upstream shows of itself; of the fields with a default, None is "not known".

    `end_visible`: tokens that end the text are among the candidates. `every_step_shown`: each
    token of a run comes with its candidates, so that a run can only be cut at its end.
    `rejection`: a sampled run is drawn from the very distributions shown, at every step.
    `scoring`: how the log-probabilities of chosen tokens can be had, if at all: many in one call,
    or by forcing one token a call. `streams`: it stops working when the connection is closed.
    `margin`: rounding error of the shown mass for each candidate, at least 1e-6.

    `logprobs`: top candidates come with their log-probabilities, `k_limit` at most (as far as was
    tried). `continues`: in what form any prefix can be continued, `continues_by` which field.
    `named_by`: what tells tokens apart. `before_temperature`, `before_bias`: the log-probabilities
    are those before either. `appends`: a sampled token outside the top k is listed beside them.
    `text_scoring`: how the log-probabilities of a given text can be had. `streamed_logprobs`:
    streams carry them too. `repeatable`: largest difference between equal calls, in nats.
    `reports_cached`: usage tells cached prompt tokens. `unknown_fields`: what becomes of them.
    `context`: tokens of prompt and answer together. `limited_by`: the field that limits the length
    of an answer. `several`: one request draws as many choices as its `n` says, independently of
    one another, and reads the prompt once for all of them. `chats`: it takes chats, which it
    renders by itself, and nothing else.
    """

    end_visible: bool
    every_step_shown: bool
    rejection: bool
    scoring: Literal["chosen", "forced"] | None
    streams: bool
    margin: float
    logprobs: bool | None = None
    k_limit: int | None = None
    continues: Literal["ids", "text", "none"] | None = None
    continues_by: str | None = None
    named_by: Literal["ids", "bytes", "text"] | None = None
    before_temperature: bool | None = None
    before_bias: bool | None = None
    appends: bool | None = None
    text_scoring: Literal["echo", "forced", "none"] | None = None
    streamed_logprobs: bool | None = None
    repeatable: float | None = None
    reports_cached: bool | None = None
    unknown_fields: Literal["refused", "ignored"] | None = None
    context: int | None = None
    limited_by: Literal["max_tokens", "max_completion_tokens"] | None = None
    several: bool | None = None
    chats: bool = False


COMPLETIONS = Capabilities(
    end_visible=True,
    every_step_shown=True,
    rejection=True,
    scoring="chosen",
    streams=True,
    margin=1e-6,
    logprobs=True,
    continues="ids",
    continues_by="prompt",
    named_by="ids",
    before_temperature=True,
    before_bias=True,
    appends=True,
    text_scoring="echo",
)
"""Classic /v1/completions with vLLM's extras; log-probabilities are float32 and printed whole."""

LLAMACPP = Capabilities(
    end_visible=True,
    every_step_shown=False,
    rejection=False,
    scoring="forced",
    streams=True,
    margin=1e-6,
    logprobs=True,
    continues="ids",
    continues_by="prompt",
    named_by="ids",
    before_temperature=True,
    before_bias=True,
    appends=False,
    text_scoring="forced",
)
"""llama.cpp's server: a token that ends inside a character comes without candidates."""

CHAT = Capabilities(
    end_visible=True,
    every_step_shown=True,
    rejection=True,
    scoring=None,
    streams=True,
    margin=1e-6,
    logprobs=True,
    continues="none",
    chats=True,
)
"""Any /v1/chat/completions; whether and how it continues an answer is told by its record."""
