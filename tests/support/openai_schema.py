"""Every answer of a service held against OpenAI's schema, whoever asked for it."""

import json
from collections.abc import Iterator
from functools import cache
from pathlib import Path
from typing import Any

import pytest
from jsonschema import Draft202012Validator
from starlette.types import ASGIApp, Message, Receive, Scope, Send

Json = dict[str, Any]

_FILE = Path(__file__).with_name("openai_schema.json")
_KINDS = {"/v1/completions": "completion", "/v1/chat/completions": "chat", "/v1/models": "models"}


def faults(kind: str, value: object) -> list[str]:
    """What is wrong with a value of a kind that the schema's `$defs` name."""
    return [f"{e.json_path}: {e.message[:200]}" for e in _validator(kind).iter_errors(value)]


def faults_of_answer(path: str, status: int, content_type: str, body: bytes) -> list[str]:
    """What is wrong with a whole answer of a service; nothing where it has no JSON to check."""
    kind = _KINDS.get(path, "model" if path.startswith("/v1/models/") else None)
    if content_type.startswith("text/event-stream"):
        return faults_of_stream(f"{kind}_chunk", body)
    if not body:
        return []
    if status >= 400:
        return faults("error", strict(body))
    return faults(kind, strict(body)) + _sums(strict(body)) if kind else []


def faults_of_stream(kind: str, body: bytes) -> list[str]:
    """What is wrong with a stream that came to its end."""
    *blocks, rest = body.decode().split("\n\n")
    found = [] if rest == "" else ["the last event does not end in an empty line"]
    found += [f"not one data line: {b[:80]}" for b in blocks if not _is_data(b)]
    datas = [block.removeprefix("data: ") for block in blocks if _is_data(block)]
    done = datas[-1:] == ["[DONE]"]
    events = [strict(data.encode()) for data in datas[: -1 if done else None]]
    chunks, errors = [e for e in events if "error" not in e], [e for e in events if "error" in e]
    if done == bool(errors) or (errors and events[-1] is not errors[0]):
        found.append("a stream ends with [DONE] or with one error")
    for chunk in chunks:
        found += faults(kind, chunk) + _sums(chunk)
    found += [fault for error in errors for fault in faults("error", error)]
    if len({(c["id"], c["created"], c["model"]) for c in chunks}) > 1:
        found.append("id, created or model change inside the stream")
    return found + ([] if errors else _endings(chunks))


def strict(data: bytes) -> Json:
    """JSON without NaN and Infinity. Raises ValueError."""

    def refuse(constant: str) -> None:
        raise ValueError(f"{constant} is no JSON")

    return json.loads(data, parse_constant=refuse)


class Checking:
    """Pure ASGI around a service: collects what is wrong with its answers in `found`."""

    def __init__(self, app: ASGIApp, found: list[str]) -> None:
        self._app = app
        self._found = found

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        start: Message = {}
        body = bytearray()

        async def watched(message: Message) -> None:
            start.update(message if message["type"] == "http.response.start" else {})
            body.extend(message.get("body", b""))
            if message["type"] == "http.response.body" and not message.get("more_body"):
                self._check(scope["path"], start, bytes(body))
            await send(message)

        await self._app(scope, receive, watched)

    def _check(self, path: str, start: Message, body: bytes) -> None:
        kind = dict(start["headers"]).get(b"content-type", b"").decode()
        try:
            found = faults_of_answer(path, start["status"], kind, body)
        except (ValueError, LookupError, TypeError) as error:
            found = [f"cannot be read: {error!r}"]
        self._found += [f"{path} {start['status']}: {fault}" for fault in found]


@pytest.fixture(scope="session")
def wire_faults() -> Iterator[list[str]]:
    """What is wrong with any answer of any service of this process."""
    from adapter.service.app import RequestId

    found: list[str] = []
    plain = RequestId.__call__

    async def checked(self: RequestId, scope: Scope, receive: Receive, send: Send) -> None:
        async def app(scope: Scope, receive: Receive, send: Send) -> None:
            await plain(self, scope, receive, send)

        await Checking(app, found)(scope, receive, send)

    RequestId.__call__ = checked
    yield found
    RequestId.__call__ = plain


@pytest.fixture(autouse=True)
def fits_openais_schema(wire_faults: list[str]) -> Iterator[None]:
    """Fails the test during which an answer of a service did not fit."""
    yield
    found, wire_faults[:] = wire_faults[:], []
    assert found == []


@cache
def _validator(kind: str) -> Draft202012Validator:
    schema = json.loads(_FILE.read_text())
    return Draft202012Validator(schema | {"$ref": f"#/$defs/{kind}"})


def _is_data(block: str) -> bool:
    return block.startswith("data: ") and "\n" not in block


def _sums(answer: Json) -> list[str]:
    usage = answer.get("usage") or {}
    if usage and usage["total_tokens"] != usage["prompt_tokens"] + usage["completion_tokens"]:
        return ["usage does not add up"]
    return []


def _endings(chunks: list[Json]) -> list[str]:
    """Each choice of a stream ends exactly once."""
    choices = [choice for chunk in chunks for choice in chunk["choices"]]
    ended = [choice["index"] for choice in choices if choice["finish_reason"]]
    right = sorted(ended) == sorted({choice["index"] for choice in choices})
    return [] if right else ["a choice does not end exactly once"]
