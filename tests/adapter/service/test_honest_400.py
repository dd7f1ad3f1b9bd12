"""Every request that is refused instead of half honoured, on the whole service.

The upstream is not there: what is refused is refused before any call. A good request then still
gets as far as the upstream.
"""

import json

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.sockets import serving

TEXT = {"model": "tiny", "prompt": "The harbour"}
CHAT = {"model": "tiny", "messages": [{"role": "user", "content": "The harbour"}]}
UNSUPPORTED, INVALID, LONG = "unsupported_parameter", "invalid_value", "context_length_exceeded"


def user(*parts):
    return {"messages": [{"role": "user", "content": list(parts)}]}


UNSUPPORTED_BOTH = [
    {"response_format": {"type": "json_object"}},
    {"response_format": {"type": "json_schema", "json_schema": {"name": "a", "schema": {}}}},
    {"chat_template": "x"},
    {"chat_template_kwargs": {"a": 1}},
    {"reasoning_effort": "low"},
    {"thinking": {"type": "enabled"}},
    {"top_k": 40},
    {"min_p": 0.1},
    {"repetition_penalty": 1.1},
    {"prompt_logprobs": 1},
    {"prompt_logprobs": 1, "stream": True},
    {"structured_outputs": {"choice": ["a"]}},
    {"allowed_token_ids": [1]},
    {"logprob_token_ids": [1]},
    {"truncate_prompt_tokens": 4},
    {"min_tokens": 3},
    {"ignore_eos": True},
    {"stop_token_ids": [3]},
    {"bad_words": ["x"]},
]
UNSUPPORTED_CHAT = [
    {"tools": [{"type": "function", "function": {"name": "f"}}]},
    {"functions": [{"name": "f"}]},
    {"tool_choice": "auto"},
    {"tool_choice": "required"},
    {"function_call": {"name": "f"}},
    {"audio": {"voice": "alloy", "format": "wav"}},
    {"modalities": ["text", "audio"]},
    {"web_search_options": {}},
    {"prediction": {"type": "content", "content": "x"}},
    {"verbosity": "low"},
    {"documents": [{"text": "x"}]},
    {"continue_final_message": True},
    {"add_generation_prompt": False},
    {"echo": True},
]
UNSUPPORTED_TEXT = [
    {"best_of": 2},
    {"best_of": 2, "stream": True},
    {"best_of": 0},
    {"suffix": "x"},
    {"echo": True, "logprobs": 1},
    {"echo": True, "logprobs": 0, "max_tokens": 0},
    {"echo": True, "steering": {"trace": True}},
]
CASES = [
    *[(body, one, next(iter(one)), UNSUPPORTED) for one in UNSUPPORTED_BOTH for body in "tc"],
    *[("c", one, next(iter(one)), UNSUPPORTED) for one in UNSUPPORTED_CHAT],
    *[("t", one, next(iter(one)), UNSUPPORTED) for one in UNSUPPORTED_TEXT],
    ("c", user({"type": "image_url", "image_url": {"url": "u"}}), "messages", UNSUPPORTED),
    ("c", user({"type": "input_audio", "input_audio": {}}), "messages", UNSUPPORTED),
    ("c", user({"type": "file", "file": {}}), "messages", UNSUPPORTED),
    # inconsistent
    ("c", {"top_logprobs": 3}, "top_logprobs", INVALID),
    *[(b, {"stream_options": {"include_usage": True}}, "stream_options", INVALID) for b in "tc"],
    # out of range
    *[("t", {"logprobs": 21, "stream": stream}, "logprobs", INVALID) for stream in (False, True)],
    *[
        ("c", {"logprobs": True, "top_logprobs": 21, "stream": stream}, "top_logprobs", INVALID)
        for stream in (False, True)
    ],
    *[(body, {"stop": list("abcde")}, "stop", INVALID) for body in "tc"],
    *[(body, {"stop": ["a", ""]}, "stop", INVALID) for body in "tc"],
    *[(body, {"max_tokens": -1}, "max_tokens", INVALID) for body in "tc"],
    *[(body, {"max_tokens": 0}, "max_tokens", INVALID) for body in "tc"],
    *[(body, {"max_tokens": 1025}, "max_tokens", INVALID) for body in "tc"],
    ("c", {"max_completion_tokens": 0}, "max_completion_tokens", INVALID),
    *[(body, {"max_tokens": 1000}, None, LONG) for body in "tc"],
    ("t", {"prompt": ["a"] * 129}, "n", INVALID),
    ("t", {"prompt": [-1]}, "prompt", INVALID),
    ("t", {"prompt": [10**6]}, "prompt", INVALID),
    *[("t", {"prompt": empty}, "prompt", INVALID) for empty in ("", [], [[]], ["a", ""])],
    ("c", {"messages": []}, "messages", INVALID),
    *[(body, {"n": 0}, "n", INVALID) for body in "tc"],
    *[(body, {"temperature": 2.5}, "temperature", INVALID) for body in "tc"],
    # malformed
    *[(body, {"max_tokens": "5"}, "max_tokens", INVALID) for body in "tc"],
    *[(body, {"logit_bias": {"foo": 1}}, "logit_bias", INVALID) for body in "tc"],
    *[(body, {"stream": "yes"}, "stream", INVALID) for body in "tc"],
    # choosing
    *[
        (body, {"steering": {"choices": choices}}, "steering.choices", INVALID)
        for body in "tc"
        for choices in ([], ["A"], ["A", "A"], ["A", ""], "AB")
    ],
    *[
        (body, {"steering": {"choices": ["A", "B"]}, name: value}, name, INVALID)
        for body in "tc"
        for name, value in (("n", 2), ("stop", "x"), ("logit_bias", {"5": 1}))
    ],
]
RAW = [b"[]", b"null", b"{", b'{"model": NaN}', b'{"temperature": Infinity}', b"[" * 9999, b"\xff"]


@pytest.fixture(scope="module")
def address(tmp_path_factory):
    template = tmp_path_factory.mktemp("templates") / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}\n{% endfor %}")
    settings = settings_for(
        "http://127.0.0.1:9/v1",
        api="llama.cpp",
        templates={"upstream": str(template)},
        upstream={"timeout": 0.5},
    )
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        yield address


@pytest.fixture(scope="module")
def http(address):
    with httpx.Client(base_url=f"{address}/v1") as http:
        yield http
        # The server lived through all of it.
        good = http.post("/completions", json=TEXT | {"max_tokens": 1})
        assert good.status_code == 503


def named(value):
    return json.dumps(value)[:60] if isinstance(value, dict) else None


@pytest.mark.parametrize(("body", "fields", "param", "code"), CASES, ids=named)
def test_what_cannot_be_honoured_is_refused_by_name(http, body, fields, param, code):
    path, given = ("completions", TEXT) if body == "t" else ("chat/completions", CHAT)
    response = http.post(f"/{path}", json=given | fields)
    error = response.json()["error"]
    assert (response.status_code, error["code"], error["param"]) == (400, code, param)
    assert error["type"] == "invalid_request_error"
    assert error["message"]
    assert response.headers["content-type"] == "application/json"


@pytest.mark.parametrize("raw", RAW)
@pytest.mark.parametrize("path", ["completions", "chat/completions"])
def test_what_is_no_body_is_refused(http, path, raw):
    response = http.post(f"/{path}", content=raw, headers={"content-type": "application/json"})
    assert response.status_code == 400
    assert set(response.json()["error"]) == {"message", "type", "param", "code"}
