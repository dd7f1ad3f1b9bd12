"""An OpenAI-compatible server over a transformers model, answering as vLLM's /v1/completions.

Log-probabilities are raw: float32 forwards, float64 log-softmax, before any sampling setting.
"""

import asyncio
import contextlib
import json
import threading
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from starlette.applications import Starlette
from starlette.requests import Request
from starlette.responses import JSONResponse, Response, StreamingResponse
from starlette.routing import Route
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel

from tests.support.sockets import serving

Json = dict[str, Any]
Step = tuple[int, torch.Tensor | None]


@dataclass
class ModelServer:
    """A served model; `requests` are the bodies received so far, `address` has no /v1.

    Without a seed every sampled answer is another. A stream comes to a stand after `hold` tokens;
    `cut` is set when a client has hung up on one.
    """

    model: PreTrainedModel
    tokenizer: Any
    name: str = "tiny"
    key: str | None = None
    address: str = ""
    requests: list[Json] = field(default_factory=list)
    lock: threading.Lock = field(default_factory=threading.Lock)
    luck: torch.Generator = field(default_factory=lambda: torch.Generator().manual_seed(0))
    hold: int | None = None
    cut: threading.Event = field(default_factory=threading.Event)

    @property
    def base_url(self) -> str:
        return f"{self.address}/v1"

    def logprobs(self, ids: list[int]) -> torch.Tensor:
        """The model's next-token log-probabilities behind `ids`, float64."""
        with self.lock, torch.inference_mode():
            logits = self.model(torch.tensor([ids])).logits[0, -1]
        return torch.log_softmax(logits.double(), -1)

    def answer(self, body: Json) -> Response:
        """The answer to a parsed request."""
        self.requests.append(body)
        problem = self._problem(body)
        if problem is not None:
            return problem
        prompts = _prompts(body["prompt"], self.tokenizer)
        if body.get("stream"):
            return StreamingResponse(self._events(prompts[0], body), media_type="text/event-stream")
        wanted = [ids for ids in prompts for _ in range(body.get("n") or 1)]
        choices = [self._choice(i, ids, body) for i, ids in enumerate(wanted)]
        produced = sum(c.pop("_tokens") for c in choices)
        read = sum(len(ids) for ids in prompts)
        return JSONResponse(
            {
                "id": "cmpl-0",
                "object": "text_completion",
                "created": 0,
                "model": self.name,
                "choices": choices,
                "system_fingerprint": None,
                "usage": _usage(read, produced),
            }
        )

    async def _events(self, prompt: list[int], body: Json) -> AsyncIterator[str]:
        """A chunk for each token; text waits until its characters are whole."""
        ids: list[int] = []
        told = ""
        try:
            for token, row, finish in self._run(prompt, body):
                if len(ids) == self.hold:
                    await asyncio.Event().wait()
                ids.append(token)
                text = self.tokenizer.decode(ids, skip_special_tokens=True)
                new = text[len(told) :] if finish or not text.endswith("\ufffd") else ""
                told += new
                yield self._event([self._shape(0, new, [(token, row)], finish, body)])
                await asyncio.sleep(0)
            if (body.get("stream_options") or {}).get("include_usage"):
                yield self._event([], usage=_usage(len(prompt), len(ids)))
            yield "data: [DONE]\n\n"
        except asyncio.CancelledError:
            self.cut.set()
            raise

    def _event(self, choices: list[Json], **more: Json) -> str:
        chunk = {"id": "cmpl-0", "object": "text_completion", "created": 0, "model": self.name}
        return f"data: {json.dumps(chunk | {'choices': choices} | more, ensure_ascii=False)}\n\n"

    def _problem(self, body: Json) -> JSONResponse | None:
        if body.get("model") != self.name:
            message = f"The model `{body.get('model')}` does not exist."
            return _error(404, message, "NotFoundError", "model")
        if not body.get("prompt"):
            return _error(400, "prompt must be non-empty.", "BadRequestError", "prompt")
        limit = self.model.config.max_position_embeddings
        longest = max(len(ids) for ids in _prompts(body["prompt"], self.tokenizer))
        if longest + body.get("max_tokens", 16) > limit:
            message = f"This model's maximum context length is {limit} tokens."
            return _error(400, message, "BadRequestError", "input_tokens")
        chosen = body.get("logprob_token_ids") or []
        if len(chosen) > 128 or not set(chosen) <= set(range(self.model.config.vocab_size)):
            return _error(400, "logprob_token_ids", "BadRequestError", "logprob_token_ids")
        return None

    def _choice(self, index: int, prompt: list[int], body: Json) -> Json:
        run = list(self._run(prompt, body))
        echoed = list(self._echoed(prompt)) if body.get("echo") else []
        steps = [*echoed, *((token, row) for token, row, _ in run)]
        text = self.tokenizer.decode([token for token, _ in steps], skip_special_tokens=True)
        return self._shape(index, text, steps, run[-1][2], body) | {"_tokens": len(run)}

    def _echoed(self, prompt: list[int]) -> Iterator[Step]:
        """Each token of a prompt with the distribution in front of it, None for the first."""
        with self.lock, torch.inference_mode():
            logits = self.model(torch.tensor([prompt])).logits[0]
        rows = torch.log_softmax(logits.double(), -1)
        yield prompt[0], None
        yield from zip(prompt[1:], rows, strict=False)

    def _run(self, prompt: list[int], body: Json) -> Iterator[tuple[int, torch.Tensor, str | None]]:
        """Each token with its distribution, and with the last why it is the last."""
        ids, seed, longest = list(prompt), body.get("seed"), body.get("max_tokens", 16)
        generator = self.luck if seed is None else torch.Generator().manual_seed(seed)
        finish = None
        while finish is None:
            row = self.logprobs(ids)
            biased = row.clone()
            for i, bias in (body.get("logit_bias") or {}).items():
                biased[int(i)] += bias  # seen by the draw, not by the log-probabilities
            token = _draw(biased, body.get("temperature", 1.0), generator)
            ids.append(token)
            if token == self.tokenizer.eos_token_id:
                finish = "stop"
            elif len(ids) == len(prompt) + longest:
                finish = "length"
            yield token, row, finish

    def _shape(
        self,
        index: int,
        text: str,
        run: list[Step],
        finish: str | None,
        body: Json,
    ) -> Json:
        return {
            "index": index,
            "text": text,
            "logprobs": None if body.get("logprobs") is None else self._logprobs(run, body),
            "finish_reason": finish,
            "stop_reason": None,
            "token_ids": None,
            "prompt_logprobs": None,
        }

    def _logprobs(self, run: list[Step], body: Json) -> Json:
        named, chosen = body.get("return_tokens_as_token_ids"), body.get("logprob_token_ids")

        def name(token: int) -> str:
            return f"token_id:{token}" if named else self.tokenizer.decode([token])

        def top(token: int, row: torch.Tensor | None) -> dict[str, float] | None:
            if row is None:
                return None
            best = chosen or row.topk(min(body["logprobs"], len(row))).indices.tolist()
            shown = best if token in best else [token, *best]  # the sampled one comes first
            return {name(i): row[i].item() for i in shown}

        tokens = [name(token) for token, _ in run]
        return {
            "text_offset": [sum(map(len, tokens[:i])) for i in range(len(tokens))],
            "token_logprobs": [None if row is None else row[token].item() for token, row in run],
            "tokens": tokens,
            "top_logprobs": [top(token, row) for token, row in run],
        }


@contextlib.contextmanager
def model_server(
    directory: Path, *, name: str = "tiny", key: str | None = None
) -> Iterator[ModelServer]:
    """The model in a directory, served on loopback; a `key` is then asked for."""
    model = AutoModelForCausalLM.from_pretrained(directory, dtype=torch.float32).eval()
    server = ModelServer(model, AutoTokenizer.from_pretrained(directory), name, key)

    async def completions(request: Request) -> Response:
        if key is not None and request.headers.get("authorization") != f"Bearer {key}":
            return _error(401, "Unauthorized", "AuthenticationError", None)
        return server.answer(await request.json())

    async def models(request: Request) -> Response:
        window = model.config.max_position_embeddings
        listed = {"id": name, "object": "model", "owned_by": "vllm", "max_model_len": window}
        return JSONResponse({"object": "list", "data": [listed]})

    app = Starlette(
        routes=[
            Route("/v1/completions", completions, methods=["POST"]),
            Route("/v1/models", models),
        ]
    )
    with serving(app) as server.address:
        yield server


def _prompts(prompt: Any, tokenizer: Any) -> list[list[int]]:
    if isinstance(prompt, str):
        return [tokenizer(prompt)["input_ids"]]
    if isinstance(prompt[0], int):
        return [prompt]
    return [ids for part in prompt for ids in _prompts(part, tokenizer)]


def _usage(read: int, produced: int) -> Json:
    return {
        "prompt_tokens": read,
        "total_tokens": read + produced,
        "completion_tokens": produced,
        "prompt_tokens_details": None,
    }


def _draw(row: torch.Tensor, temperature: float, generator: torch.Generator) -> int:
    if temperature == 0:
        return int(row.argmax())
    weights = torch.softmax(row / temperature, -1)
    return int(torch.multinomial(weights, 1, generator=generator))


def _error(status: int, message: str, kind: str, param: str | None) -> JSONResponse:
    error = {"message": message, "type": kind, "param": param, "code": status}
    return JSONResponse({"error": error}, status)
