"""The schema that all answers are held against: it takes the right ones and no wrong one."""

import copy
import json

import httpx
import pytest

from adapter.errors import UpstreamTimeout
from tests.support.openai_schema import Checking, faults, faults_of_answer, faults_of_stream
from tests.support.scripted_adapter import ScriptedAdapter, alternative, end_step, ending, step

BODIES = {
    "completions": {"model": "m", "prompt": "p", "logprobs": 2, "n": 2},
    "chat/completions": {
        "model": "m", "messages": [{"role": "user", "content": "p"}], "logprobs": True,
        "top_logprobs": 2,
    },
}  # fmt: skip
TRACE = {"steering": {"trace": "candidates"}}
SHOWN = (alternative("a", -0.1), alternative(b"\xc3", -2.0), alternative(b"", -3.0, "<|end|>"))
SCRIPT = (step("Hi", shown=SHOWN), step(b"\xc3", "", shown=SHOWN), end_step(), ending())


def answer(address: str, path: str, **more) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json=BODIES[path] | more)


def found(response: httpx.Response) -> list[str]:
    kind = response.headers["content-type"]
    return faults_of_answer(response.request.url.path, response.status_code, kind, response.content)


@pytest.mark.parametrize("more", [{}, TRACE, {"stream_options": {"include_usage": True}}])
@pytest.mark.parametrize("path", BODIES)
def test_answers_and_streams_fit(serve, path, more):
    address = serve(ScriptedAdapter(SCRIPT))
    assert found(answer(address, path, stream=True, **more)) == []
    if "stream_options" not in more:
        assert found(answer(address, path, **more)) == []


@pytest.mark.parametrize("path", BODIES)
def test_failures_fit(serve, path):
    late = serve(ScriptedAdapter((step("Hi"), UpstreamTimeout("slow"))))
    assert found(answer(late, path, stream=True)) == []
    for response in (
        answer(late, path),
        answer(late, path, n=0),
        httpx.get(f"{late}/v1/nothing"),
        httpx.delete(f"{late}/v1/{path}"),
        httpx.post(f"{late}/v1/{path}", content=b"{}"),
        httpx.get(f"{late}/v1/models/none"),
    ):
        assert response.status_code >= 400
        assert found(response) == []


def test_models_fit(hello):
    for path in ("models", "models/m", "models/org/other"):
        response = httpx.get(f"{hello}/v1/{path}")
        assert response.status_code == 200
        assert found(response) == []


def paths(value: object, at: tuple = ()) -> list[tuple]:
    """Every field of an answer, by the way to it."""
    if isinstance(value, dict):
        return [p for k, v in value.items() for p in [(*at, k), *paths(v, (*at, k))]]
    if isinstance(value, list) and value:
        return paths(value[0], (*at, 0))
    return []


WRONG = {"an object": {"x": {}}, "a list": [[[]]], "none": None, "gone": KeyError}
NULLABLE = {
    "logprobs", "refusal", "content", "bytes", "usage", "cost", "top_logprobs", "token_logprobs",
}  # fmt: skip


@pytest.mark.parametrize("path", BODIES)
def test_no_field_may_be_of_another_kind_or_missing(serve, path):
    """The schema's own test: of all single changes to an answer hardly any passes."""
    right = answer(serve(ScriptedAdapter(SCRIPT)), path).json()
    kind = "chat" if "chat" in path else "completion"
    changed, passed = 0, []
    for way in paths(right):
        for name, value in WRONG.items():
            wrong = copy.deepcopy(right)
            *outer, last = way
            inner = wrong
            for part in outer:
                inner = inner[part]
            if "top_logprobs" in outer and value is KeyError:
                continue  # one candidate less
            if value is KeyError:
                del inner[last]
            else:
                inner[last] = value
            changed += 1
            if not faults(kind, wrong) and not (value is None and last in NULLABLE):
                passed.append((way, name))
    assert changed > 80
    assert passed == []


@pytest.mark.parametrize(
    ("body", "fault"),
    [
        (b'data: {"id":\n\n', "cannot be read"),
        (b"data: [DONE]\n", "empty line"),
        (b'data: {"error": 1}\n\ndata: [DONE]\n\n', "[DONE] or with one error"),
        (b"", "[DONE] or with one error"),
        (b": ping\n\ndata: [DONE]\n\n", "not one data line"),
    ],
)
def test_streams_that_end_wrongly(body, fault):
    try:
        said = faults_of_stream("chat_chunk", body)
    except ValueError as error:
        said = [f"cannot be read {error}"]
    assert any(fault in line for line in said), said


def test_numbers_that_are_no_json_are_noticed():
    with pytest.raises(ValueError, match="NaN"):
        faults_of_answer("/v1/models", 200, "application/json", b'{"object": NaN}')


async def test_whatever_a_service_sends_is_looked_at():
    async def wrong(scope, receive, send):
        body = json.dumps({"object": "list", "data": 1}).encode()
        headers = [(b"content-type", b"application/json")]
        await send({"type": "http.response.start", "status": 200, "headers": headers})
        await send({"type": "http.response.body", "body": body})

    async def send(message):
        pass

    seen: list[str] = []
    await Checking(wrong, seen)({"path": "/v1/models"}, None, send)
    assert seen == ["/v1/models 200: $.data: 1 is not of type 'array'"]


def test_this_very_suite_is_looked_at(hello, wire_faults):
    """A canary: an answer that does not fit is noted by the fixture around every test."""
    from adapter.service.app import ModelRoutes

    plain = ModelRoutes._model
    ModelRoutes._model = lambda self, name: plain(self, name) | {"extra": 1}
    try:
        httpx.get(f"{hello}/v1/models")
    finally:
        ModelRoutes._model = plain
    assert len(wire_faults) == 2
    wire_faults.clear()
