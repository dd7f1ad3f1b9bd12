"""What clients send: OpenAI's request bodies and `steering`, read strictly into Requests.

A field that would change the output and is not supported is refused by name; null and values that
change nothing are as good as absent.
"""

import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Annotated, Any, Literal, Self, TypeVar

from pydantic import (
    BaseModel,
    BeforeValidator,
    ConfigDict,
    Field,
    PlainValidator,
    ValidationError,
    model_validator,
)
from pydantic_core import ErrorDetails, from_json

from adapter.errors import BadRequest, UnsupportedParameter
from adapter.request import (
    LONGEST,
    CacheUse,
    Chat,
    Echo,
    Lookahead,
    Message,
    Prompt,
    Request,
    Sampling,
    Trace,
)
from adapter.settings import LimitSettings

MAX_CHOICES = 128
"""Prompts × n in one request."""

MAX_MESSAGES = 256
MAX_STOPS = 4
MAX_STOP_LENGTH = 64
MAX_BIASES = 300
MAX_LABELS = 64
MAX_LABEL_LENGTH = 64
MAX_SHOWN = 20
"""Candidates in each step of a trace."""

MAX_DEPTH = 64
"""Objects and lists inside each other in a body."""

MAX_INNER = 10_000
"""Objects and lists in a body."""

MAX_FIELDS = 100
"""Fields of a body; OpenAI and vLLM together know fewer."""

_LONGEST_NAME = 64

COMPLETION_TOKENS = 16
"""OpenAI's own default of max_tokens for completions."""

CHAT_TOKENS = 256
"""Default of max_tokens for chats; OpenAI has none, but every token here is a paid call."""

_HARMLESS = frozenset(
    [
        "user",
        "metadata",
        "store",
        "safety_identifier",
        "prompt_cache_key",
        "prompt_cache_retention",
        "service_tier",
        "parallel_tool_calls",
        "priority",
        "request_id",
    ]
)
"""Fields that ask for nothing in the output; ignored."""

_NO_OPS: Mapping[str, tuple[object, ...]] = {
    "add_generation_prompt": (True,),
    "bad_words": ([],),
    "best_of": (1,),
    "chat_template_kwargs": ({},),
    "continue_final_message": (False,),
    "echo": (False,),
    "function_call": ("none",),
    "functions": ([],),
    "ignore_eos": (False,),
    "include_stop_str_in_output": (False,),
    "length_penalty": (1,),
    "min_p": (0,),
    "min_tokens": (0,),
    "modalities": (["text"],),
    "repetition_penalty": (1,),
    "response_format": ({"type": "text"},),
    "return_token_ids": (False,),
    "return_tokens_as_token_ids": (False,),
    "skip_special_tokens": (True,),
    "stop_token_ids": ([],),
    "suffix": ("",),
    "tool_choice": ("none",),
    "tools": ([],),
    "top_k": (-1, 0),
    "use_beam_search": (False,),
}
"""Unsupported fields with the values that change nothing; any other value is refused."""

_NO_CHOOSING = (
    "n",
    "stop",
    "logit_bias",
    "presence_penalty",
    "frequency_penalty",
    "logprobs",
    "echo",
)
"""What choosing among labels cannot honour. Temperature, top_p, seed and max_tokens change nothing
there: labels are compared, and none is drawn or cut."""


@dataclass(frozen=True, slots=True)
class Asked:
    """One HTTP request understood: what to generate and how to show it.

    `logprobs` is the number of candidates shown beside each token, None for no log-probabilities.
    """

    requests: tuple[Request, ...]
    stream: bool
    include_usage: bool
    logprobs: int | None

    @property
    def model(self) -> str:
        return self.requests[0].model

    @property
    def trace(self) -> Trace:
        return self.requests[0].trace

    @property
    def length(self) -> int:
        """Characters and ids of all prompts."""
        return sum(_length(request.prompt) for request in self.requests)

    def using(self, cache: CacheUse, tenant: str | None = None) -> "Asked":
        """The same, with another use of the cache, among the entries of a tenant."""
        requests = tuple(replace(r, cache=cache, tenant=tenant) for r in self.requests)
        return replace(self, requests=requests)


def _length(prompt: Prompt) -> int:
    if isinstance(prompt, Chat):
        return sum(len(message.content) for message in prompt.messages)
    return len(prompt)


def cache_use(control: str) -> CacheUse:
    """What a Cache-Control header asks for; directives that are not known ask for nothing."""
    directives = {part.strip().lower() for part in control.split(",")}
    if "no-store" in directives:
        return "bypass"
    return "refresh" if "no-cache" in directives else "use"


class Wire(BaseModel):
    """A JSON object taken literally: no conversions, no unknown fields, no NaN or Infinity."""

    model_config = ConfigDict(frozen=True, strict=True, extra="forbid", allow_inf_nan=False)


def _trace(value: object) -> Trace:
    if value == "candidates":
        return "candidates"
    if value is not None and not isinstance(value, bool):
        raise ValueError('must be true, false or "candidates"')
    return "steps" if value else "off"


def _lookahead(value: object) -> Lookahead | None:
    if value in (None, "auto", "stream"):
        return value
    if type(value) is not int or not 1 <= value <= LONGEST:
        raise ValueError(f'must be 1 to {LONGEST}, "auto" or "stream"')
    return value


def _labels(value: object) -> tuple[str, ...]:
    if not isinstance(value, list) or not all(isinstance(label, str) for label in value):
        raise ValueError("must be a list of strings")
    bare = {label.removeprefix(" ") for label in value}
    if not all(0 < len(label) <= MAX_LABEL_LENGTH for label in value) or "" in bare:
        raise ValueError(f"each must have 1 to {MAX_LABEL_LENGTH} characters, not only a space")
    if not 2 <= len(value) <= MAX_LABELS:
        raise ValueError(f"must be 2 to {MAX_LABELS} labels")
    if len(bare) < len(value):
        raise ValueError("two of them are the same, or differ only by one leading space")
    return tuple(value)


class Steering(Wire):
    alpha: float | None = None
    choices: Annotated[tuple[str, ...], PlainValidator(_labels)] = ()
    weights: dict[str, float] | None = None
    lookahead: Annotated[Lookahead | None, PlainValidator(_lookahead)] = None
    trace: Annotated[Trace, PlainValidator(_trace)] = "off"


class StreamOptions(Wire):
    include_usage: bool | None = False
    include_obfuscation: bool | None = None


def _stops(value: object) -> tuple[str, ...]:
    stops = [value] if isinstance(value, str) else value
    if not isinstance(stops, list):
        raise ValueError("must be a string or a list of strings")
    if len(stops) > MAX_STOPS or not all(map(_is_stop, stops)):
        raise ValueError(f"at most {MAX_STOPS} strings of 1 to {MAX_STOP_LENGTH} characters")
    return tuple(stops)


def _is_stop(value: object) -> bool:
    return isinstance(value, str) and 0 < len(value) <= MAX_STOP_LENGTH


def _by_id(value: object) -> object:
    if not isinstance(value, dict):
        return value
    if len(value) > MAX_BIASES:
        raise ValueError(f"at most {MAX_BIASES} tokens")
    if not all(re.fullmatch(r"[0-9]{1,9}", key) for key in value):
        raise ValueError("keys must be token ids in decimal digits")
    return {int(key): bias for key, bias in value.items()}


def _prompts(value: object) -> tuple[Prompt, ...]:
    several = isinstance(value, list) and not all(type(item) is int for item in value)
    items = value if isinstance(value, list) and several else [value]
    return tuple(_prompt(item) for item in items)


def _prompt(value: object) -> Prompt:
    if isinstance(value, str) and value:
        return value
    if isinstance(value, list) and value and all(type(i) is int and i >= 0 for i in value):
        return tuple(value)
    raise ValueError("must be text, token ids, or a list of texts or of token ids; none empty")


def _text(value: object) -> str:
    """A message's content: text, or text parts, which stand on lines of their own."""
    if isinstance(value, str):
        return value
    if not isinstance(value, list) or not value:
        raise ValueError("must be text or a list of text parts")
    return "\n".join(_part(part) for part in value)


def _part(part: object) -> str:
    if not isinstance(part, dict) or not isinstance(part.get("type"), str):
        raise ValueError("every part must be an object with a type")
    if part["type"] != "text":
        raise UnsupportedParameter("messages: only text parts are supported", param="messages")
    if not isinstance(part.get("text"), str):
        raise ValueError("a text part must hold text")
    return str(part["text"])


def _without_nothing(value: object) -> object:
    """A message as clients send it back to us: answers carry null and empty fields."""
    if not isinstance(value, dict):
        return value
    return {name: v for name, v in value.items() if v is not None and v != []}


class Turn(Wire):
    role: Literal["system", "developer", "user", "assistant"]
    content: Annotated[str, PlainValidator(_text)]

    @property
    def message(self) -> Message:
        """`developer` is the newer name of `system`; chat templates know only the older one."""
        return Message("system" if self.role == "developer" else self.role, self.content)


Bias = Annotated[float, Field(ge=-100, le=100)]
Penalty = Annotated[float, Field(ge=-2, le=2)]


class GenerationBody(Wire):
    """The fields both endpoints share."""

    model: str = Field(min_length=1)
    max_tokens: int | None = Field(default=None, ge=1)
    temperature: float = Field(default=1.0, ge=0, le=2)
    top_p: float = Field(default=1.0, gt=0, le=1)
    n: int = Field(default=1, ge=1, le=MAX_CHOICES)
    seed: int | None = Field(default=None, ge=-(2**63), lt=2**63)
    stop: Annotated[tuple[str, ...], PlainValidator(_stops)] = ()
    presence_penalty: Penalty = 0.0
    frequency_penalty: Penalty = 0.0
    logit_bias: Annotated[dict[int, Bias], BeforeValidator(_by_id)] = {}
    stream: bool = False
    stream_options: StreamOptions | None = None
    steering: Steering = Steering()

    @model_validator(mode="after")
    def _consistent(self) -> Self:
        if self.stream_options is not None and not self.stream:
            raise BadRequest("stream_options needs stream: true", param="stream_options")
        for name in _NO_CHOOSING if self.steering.choices else ():
            field = type(self).model_fields.get(name)
            if field is not None and getattr(self, name) != field.default:
                raise BadRequest(
                    f"{name} has no meaning with steering.choices, where nothing is generated; "
                    "leave it out",
                    param=name,
                )
        return self

    @property
    def echoes(self) -> Echo:
        """Only completions give their prompt back."""
        return "off"

    def asked(self, prompts: tuple[Prompt, ...], logprobs: int | None, tokens: int) -> Asked:
        """One Request for each prompt; `tokens` stands in for an absent max_tokens."""
        if len(prompts) * self.n > MAX_CHOICES:
            raise BadRequest(f"at most {MAX_CHOICES} prompts × n are allowed", param="n")
        steering, options = self.steering, self.stream_options
        requests = tuple(
            Request(
                model=self.model,
                prompt=prompt,
                sampling=self._sampling(tokens),
                n=self.n,
                alpha=steering.alpha,
                weights=steering.weights,
                lookahead=steering.lookahead,
                trace=steering.trace,
                choices=steering.choices,
                echo=self.echoes,
                shown=max(logprobs or 0, MAX_SHOWN if steering.trace == "candidates" else 0),
            )
            for prompt in prompts
        )
        return Asked(requests, self.stream, bool(options and options.include_usage), logprobs)

    def _sampling(self, tokens: int) -> Sampling:
        return Sampling(
            max_tokens=tokens if self.max_tokens is None else self.max_tokens,
            temperature=self.temperature,
            top_p=self.top_p,
            seed=self.seed,
            stop=self.stop,
            presence_penalty=self.presence_penalty,
            frequency_penalty=self.frequency_penalty,
            logit_bias=self.logit_bias,
        )


class CompletionBody(GenerationBody):
    prompt: Annotated[tuple[Prompt, ...], PlainValidator(_prompts)]
    max_tokens: int | None = Field(default=None, ge=0)
    logprobs: int | None = Field(default=None, ge=0)
    echo: bool = False

    @model_validator(mode="after")
    def _something(self) -> Self:
        if self.max_tokens == 0 and not self.echo:
            raise BadRequest("max_tokens must be at least 1 without echo: true", param="max_tokens")
        return self

    @property
    def echoes(self) -> Echo:
        """Numbers only for those who look at them: they take a call, and the pair's reading."""
        if not self.echo:
            return "off"
        return "text" if self.logprobs is None and self.steering.trace == "off" else "scores"


class ChatBody(GenerationBody):
    messages: list[Annotated[Turn, BeforeValidator(_without_nothing)]] = Field(
        min_length=1, max_length=MAX_MESSAGES
    )
    max_completion_tokens: int | None = Field(default=None, ge=1)
    logprobs: bool = False
    top_logprobs: int | None = Field(default=None, ge=0)

    @model_validator(mode="after")
    def _one_spelling(self) -> Self:
        if self.top_logprobs is not None and not self.logprobs:
            raise BadRequest("top_logprobs needs logprobs: true", param="top_logprobs")
        if self.max_tokens is not None and self.max_completion_tokens is not None:
            raise BadRequest(
                "max_tokens and max_completion_tokens are the same; send one of them",
                param="max_completion_tokens",
            )
        return self


def read_completion(raw: bytes, limits: LimitSettings) -> Asked:
    """A body of /v1/completions. Raises BadRequest and UnsupportedParameter with `param`."""
    body = read_wire(raw, CompletionBody)
    _check_shown("logprobs", body.logprobs, limits)
    return body.asked(body.prompt, body.logprobs, min(COMPLETION_TOKENS, limits.max_tokens))


def read_chat(raw: bytes, limits: LimitSettings) -> Asked:
    """A body of /v1/chat/completions. Raises BadRequest and UnsupportedParameter with `param`."""
    body = read_wire(raw, ChatBody)
    _check_shown("top_logprobs", body.top_logprobs, limits)
    logprobs = (body.top_logprobs or 0) if body.logprobs else None
    chat = Chat(tuple(turn.message for turn in body.messages))
    default = min(CHAT_TOKENS, limits.max_tokens)
    return body.asked((chat,), logprobs, body.max_completion_tokens or default)


Body = TypeVar("Body", bound=Wire)


def read_wire(raw: bytes, kind: type[Body]) -> Body:
    """A body of a kind. Raises BadRequest and UnsupportedParameter with `param`."""
    _check_inner(raw)
    try:
        data = from_json(raw, allow_inf_nan=False)
    except ValueError as error:
        raise BadRequest("the body is not valid JSON") from error
    if not isinstance(data, dict):
        raise BadRequest("the body must be a JSON object")
    _check_shape(data)
    try:
        return kind.model_validate({k: v for k, v in data.items() if not _says_nothing(k, v)})
    except ValidationError as error:
        raise _refusal(error.errors()[0]) from None


def _check_inner(raw: bytes) -> None:
    """Before anything is read: half a million lists take half a second."""
    if _inner(raw) > MAX_INNER and _inner(_STRING.sub(b"", raw)) > MAX_INNER:
        raise BadRequest(f"the body holds more than {MAX_INNER} objects and lists")


def _inner(raw: bytes) -> int:
    return raw.count(b"[") + raw.count(b"{")


_STRING = re.compile(rb'"(?:[^"\\]++|\\.)*+"?', re.DOTALL)
"""A JSON string; one without an end goes to the end, so that a body is gone through once."""


def _check_shape(data: dict[str, Any]) -> None:
    """Level by level: what reads the values later may recurse, and makes an error of each field."""
    if len(data) > MAX_FIELDS:
        raise BadRequest(f"the body has more than {MAX_FIELDS} fields")
    level: list[Any] = [data]
    for _ in range(MAX_DEPTH):
        inner = [v.values() if isinstance(v, dict) else v for v in level]
        level = [v for values in inner for v in values if isinstance(v, dict | list)]
        if not level:
            return
    raise BadRequest(f"the body nests more than {MAX_DEPTH} objects and lists")


def _says_nothing(name: str, value: object) -> bool:
    if value is None or name in _HARMLESS:
        return True
    no_ops = _NO_OPS.get(name, ())
    return any(value == n and isinstance(value, bool) == isinstance(n, bool) for n in no_ops)


def _refusal(error: ErrorDetails) -> BadRequest:
    """The first mistake pydantic found, without the value: it may be the user's text."""
    first, *rest = error["loc"]
    param = str(first) + "".join(f"[{p}]" if isinstance(p, int) else f".{p}" for p in rest)
    param = param[:_LONGEST_NAME]
    if error["type"] == "extra_forbidden":
        return UnsupportedParameter(f"{param} is not supported", param=param)
    if error["type"] == "missing":
        return BadRequest(f"{param} is required", param=param)
    message = error["msg"].removeprefix("Value error, ")
    return BadRequest(f"{param}: {message[0].lower()}{message[1:]}", param=param)


def _check_shown(name: str, count: int | None, limits: LimitSettings) -> None:
    if count is not None and count > limits.top_logprobs:
        raise BadRequest(
            f"{name} is {count}, allowed is up to {limits.top_logprobs} (limits.top_logprobs)",
            param=name,
        )
