"""A chat API over a transformers model, in OpenAI's exact shapes, with other servers' habits."""

import codecs
import contextlib
import json
from collections.abc import Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer

from tests.support.model_server import ModelServer
from tests.support.sockets import serving
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Vocabulary

Json = dict[str, Any]

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m['role'] }}<|bos|>{{ m['content'] }}{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant<|bos|>{% endif %}"
)
"""Whatever the assistant says stands behind a special token, as with real templates."""

_OPENAI = {
    "model", "messages", "max_tokens", "max_completion_tokens", "temperature", "top_p", "n",
    "stream", "stream_options", "logprobs", "top_logprobs", "logit_bias", "presence_penalty",
    "frequency_penalty", "seed", "stop",
}  # fmt: skip


@dataclass(frozen=True)
class Habits:
    """What a chat server does; OpenAI's by default.

    `named`: by true bytes, by what is printed of them, or by ids, asked for or always. `repeats`:
    the answer begins with what it goes on from. `appends`: a sampled token beyond the top k is
    listed. `loses`: nothing is shown of tokens that end inside a character. `drops`: streams are
    without the chunks that have no text, as LiteLLM's; the last one says how it ended. `dumb`: no
    log-probabilities, in answers or in streams. `newer`: `max_tokens` is refused, as gpt-5 does.
    `deaf`: what the assistant said last is left out. `single`: one choice, whatever `n` says.
    """

    continues: Literal["none", "trailing message", "continue_final_message", "prefix"] = "none"
    named: Literal["bytes", "printed", "asked ids", "ids"] = "bytes"
    most: int = 20
    strict: bool = True
    hides_end: bool = True
    repeats: bool = False
    appends: bool = False
    loses: bool = False
    drops: bool = False
    dumb: Literal["no", "always", "streams"] = "no"
    newer: bool = False
    deaf: bool = False
    single: bool = False


VLLM = Habits("continue_final_message", "asked ids", most=10**6, strict=False, hides_end=False)
LLAMACPP = Habits(
    "trailing message", "ids", 10**6, strict=False, hides_end=False, repeats=True, loses=True
)


@dataclass
class ChatServer:
    """A served chat; `requests` are the bodies received so far."""

    model: ModelServer
    words: Vocabulary
    habits: Habits
    address: str = ""
    requests: list[Json] = field(default_factory=list)

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def ids(self, messages: list[Json], said: str | None = None) -> list[int]:
        """The prompt as the model reads it, and behind it what the assistant has said."""
        turns = [{"role": m["role"], "content": m["content"]} for m in messages]
        text = self.model.tokenizer.apply_chat_template(
            turns, tokenize=False, add_generation_prompt=True, chat_template=TEMPLATE
        )
        return self.model.tokenizer(text + (said or ""))["input_ids"]

    def answer(self, body: Json) -> Response:
        self.requests.append(body)
        if self.habits.newer and "max_tokens" in body:
            return _error(_NEWER, "max_tokens", "unsupported_parameter")
        problem = self._problem(body)
        if problem is not None:
            return _error(problem)
        messages, said = body["messages"], None
        if self.habits.deaf and messages[-1]["role"] == "assistant":
            messages = messages[:-1]
        if self._goes_on(body):
            *messages, last = messages
            said = last["content"]
        prompt = self.ids(messages, said)
        if len(prompt) + _longest(body) > 512:
            return _error("This model's maximum context length is 512 tokens.")
        asked = body | {"max_tokens": _longest(body)}
        if body.get("stream"):
            chunks = self._chunks(self.model._run(prompt, asked), said, len(prompt), body)
            return StreamingResponse(chunks, media_type="text/event-stream")
        runs = [list(self.model._run(prompt, asked)) for _ in range(self._choices(body))]
        return JSONResponse(self._whole(runs, said, len(prompt), body))

    def _problem(self, body: Json) -> str | None:
        unknown = set(body) - _OPENAI - ({"prefix"} if self.habits.continues == "prefix" else set())
        if self.habits.strict and unknown:
            return f"Unrecognized request arguments supplied: {', '.join(sorted(unknown))}"
        if body.get("top_logprobs", 0) > self.habits.most:
            return f"Invalid 'top_logprobs': must be less than or equal to {self.habits.most}."
        if body.get("top_logprobs") is not None and not body.get("logprobs"):
            return "'logprobs' must be true if 'top_logprobs' is set."
        return None

    def _goes_on(self, body: Json) -> bool:
        last, form = body["messages"][-1], self.habits.continues
        if last["role"] != "assistant" or form == "none":
            return False
        if form == "continue_final_message":
            return bool(body.get(form)) and body.get("add_generation_prompt") is False
        return form == "trailing message" or bool(last.get("prefix"))

    def _choices(self, body: Json) -> int:
        return 1 if self.habits.single else body.get("n") or 1

    def _whole(self, runs: list[Any], said: str | None, read: int, body: Json) -> Json:
        choices = [
            {"index": index, **self._choice(run, said, body)} for index, run in enumerate(runs)
        ]
        usage = _usage(read, sum(map(len, runs)))
        return _head("chat.completion") | {"choices": choices, "usage": usage}

    def _choice(self, run: list[Any], said: str | None, body: Json) -> Json:
        entries = [e for at in range(len(run)) for e in self._entries(run, at, body)]
        silent = not body.get("logprobs") or self.habits.dumb == "always"
        text = (said or "") * self.habits.repeats + self._text(run)
        return {
            "message": {"role": "assistant", "content": text, "refusal": None},
            "logprobs": None if silent or not entries else {"content": entries, "refusal": None},
            "finish_reason": run[-1][2],
        }

    def _chunks(self, run: Any, said: str | None, read: int, body: Json) -> Iterator[str]:
        opening = {"role": "assistant", "content": (said or "") * self.habits.repeats}
        yield _chunk([_delta(opening, None, None)])
        done: list[Any] = []
        told, finish, shown = "", None, None
        for step in run:
            done.append(step)
            finish, text = step[2], self._text(done)
            new = text[len(told) :] if finish or not text.endswith("\ufffd") else ""
            told += new
            entries = self._entries(done, len(done) - 1, body)
            shown = {"content": entries, "refusal": None} if entries else None
            if self.habits.dumb != "no":
                shown = None
            if new or (shown and not self.habits.drops):
                yield _chunk([_delta({"content": new}, shown, None)])
                shown = None
        yield _chunk([_delta({}, shown, finish)])
        if (body.get("stream_options") or {}).get("include_usage"):
            yield _chunk([], usage=_usage(read, len(done)))
        yield "data: [DONE]\n\n"

    def _text(self, run: list[Any]) -> str:
        return self.model.tokenizer.decode([t for t, _, _ in run], skip_special_tokens=True)

    def _entries(self, run: list[Any], at: int, body: Json) -> list[Json]:
        """The entry of a token; none where it is hidden or lost."""
        token, row, _ = run[at]
        end = token == self.model.tokenizer.eos_token_id
        if end and self.habits.hides_end:
            return []
        own = self._spelt(token)
        if self.habits.loses and not end:
            own = _open(b"".join(self._spelt(t) for t, _, _ in run[:at])) + own
            if _open(own):
                return []
        best = row.topk(min(body.get("top_logprobs", 0), len(row))).indices.tolist()
        if self.habits.hides_end:
            best = [i for i in best if i != self.model.tokenizer.eos_token_id]
        if self.habits.appends and token not in best:
            best.append(token)
        listed = [self._named(i, row, self._spelt(i), body) for i in best]
        return [self._named(token, row, own, body) | {"top_logprobs": listed}]

    def _spelt(self, token: int) -> bytes:
        return self.words.tokens[token] if token not in self.words.specials.values() else b""

    def _named(self, token: int, row: torch.Tensor, spelt: bytes, body: Json) -> Json:
        printed = spelt.decode("utf-8", "replace")
        named: Json = {"token": printed, "logprob": row[token].item(), "bytes": list(spelt)}
        if self.habits.named == "printed":
            named["bytes"] = list(printed.encode())
        elif self.habits.named == "asked ids" and body.get("return_tokens_as_token_ids"):
            key = f"token_id:{token}"
            named |= {"token": key, "bytes": list(key.encode())}
        elif self.habits.named == "asked ids" and "\ufffd" in printed:
            named |= {"token": "", "bytes": []}
        elif self.habits.named == "ids":
            named["id"] = token
        return named


@contextlib.contextmanager
def chat_server(directory: Path, habits: Habits = Habits()) -> Iterator[ChatServer]:
    """The model in a directory behind a chat API alone, on loopback, called `tiny`."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    tokenizer = AutoTokenizer.from_pretrained(directory)
    words = load_vocabulary(f"hf:{directory}")
    server = ChatServer(ModelServer(model, tokenizer), words, habits)

    async def chats(request: Request) -> Response:
        return server.answer(await request.json())

    async def models(_: Request) -> Response:
        return JSONResponse({"object": "list", "data": [{"id": "tiny", "object": "model"}]})

    app = Starlette(
        routes=[
            Route("/v1/chat/completions", chats, methods=["POST"]),
            Route("/v1/models", models),
        ]
    )
    with serving(app) as server.address:
        yield server


def _longest(body: Json) -> int:
    return body.get("max_completion_tokens") or body.get("max_tokens") or 16


def _head(kind: str) -> Json:
    return {"id": "chatcmpl-0", "object": kind, "created": 0, "model": "tiny"}


def _chunk(choices: list[Json], usage: Json | None = None) -> str:
    chunk = _head("chat.completion.chunk") | {"choices": choices, "usage": usage}
    return f"data: {json.dumps(chunk)}\n\n"


def _delta(delta: Json, logprobs: Json | None, finish: str | None) -> Json:
    return {"index": 0, "delta": delta, "logprobs": logprobs, "finish_reason": finish}


def _usage(read: int, produced: int) -> Json:
    return {
        "prompt_tokens": read,
        "completion_tokens": produced,
        "total_tokens": read + produced,
        "prompt_tokens_details": {"cached_tokens": 0},
    }


_NEWER = (
    "Unsupported parameter: 'max_tokens' is not supported with this model. "
    "Use 'max_completion_tokens' instead."
)


def _error(message: str, param: str | None = None, code: str | None = None) -> Response:
    kind = "invalid_request_error"
    return JSONResponse(
        {"error": {"message": message, "type": kind, "param": param, "code": code}}, 400
    )


def _open(spelt: bytes) -> bytes:
    """The beginning of a character at the end of a text."""
    decoder = codecs.getincrementaldecoder("utf-8")("replace")
    decoder.decode(spelt)
    return decoder.getstate()[0]
