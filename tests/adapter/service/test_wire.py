"""What bodies are understood, and every honest 400."""

import json

import pytest

from adapter.errors import BadRequest, UnsupportedParameter
from adapter.request import Chat, Message
from adapter.service.wire import MAX_CHOICES, Asked, cache_use, read_chat, read_completion
from adapter.settings import LimitSettings

LIMITS = LimitSettings(top_logprobs=5, max_tokens=100)
PROMPT = {"model": "m", "prompt": "p"}
CHAT = {"model": "m", "messages": [{"role": "user", "content": "p"}]}


def completion(**fields) -> Asked:
    return read_completion(json.dumps(PROMPT | fields).encode(), LIMITS)


def chat(**fields) -> Asked:
    return read_chat(json.dumps(CHAT | fields).encode(), LIMITS)


def user(content) -> dict:
    return {"messages": [{"role": "user", "content": content}]}


RECORDED_COMPLETIONS = {
    "LangChain OpenAI": {
        "prompt": ["hi"], "frequency_penalty": 0, "presence_penalty": 0, "n": 1, "seed": None,
        "temperature": 0.7, "top_p": 1, "max_tokens": 64, "logprobs": None, "logit_bias": None,
    },
    "LlamaIndex": {"stream": False, "temperature": 0.1, "max_tokens": 64, "logprobs": 1},
    "llm": {"stream": True, "stream_options": {"include_usage": True}},
    "lm-eval generate": {
        "prompt": [[1, 2, 3]], "max_tokens": 32, "temperature": 0, "stop": ["\n", "</s>"],
        "seed": 1234,
    },
    "no-ops": {
        "best_of": 1, "suffix": "", "echo": False, "top_k": -1, "min_p": 0.0, "logprobs": 0,
        "repetition_penalty": 1.0, "response_format": {"type": "text"}, "stop": None,
    },
}  # fmt: skip

RECORDED_CHATS = {
    "LangChain": {"max_completion_tokens": 64, "stream": False, "temperature": 0.7},
    "openai stream helper": {"stream": True, "logprobs": True, "top_logprobs": 5},
    "tolerated": {
        "user": "u", "metadata": {"a": "b"}, "store": True, "service_tier": "auto",
        "safety_identifier": "s", "prompt_cache_key": "k", "parallel_tool_calls": False,
        "tools": [], "tool_choice": "none", "functions": None, "modalities": ["text"],
        "reasoning_effort": None, "stream_options": None,
    },
}  # fmt: skip


@pytest.mark.parametrize("fields", RECORDED_COMPLETIONS.values(), ids=RECORDED_COMPLETIONS)
def test_completions_that_clients_send_are_understood(fields):
    assert completion(**fields).model == "m"


@pytest.mark.parametrize("fields", RECORDED_CHATS.values(), ids=RECORDED_CHATS)
def test_chats_that_clients_send_are_understood(fields):
    assert chat(**fields).model == "m"


def test_a_full_completion_becomes_a_request():
    asked = completion(
        prompt=["a", [1, 2]], n=2, max_tokens=7, temperature=0, top_p=0.5, seed=-3, stop="x",
        presence_penalty=1, frequency_penalty=-2, logit_bias={"12": -100}, logprobs=3, stream=True,
        stream_options={"include_usage": True},
        steering={"alpha": 2, "weights": {"e": 0.5}, "trace": True},
    )  # fmt: skip
    first, second = asked.requests
    assert (first.prompt, second.prompt) == ("a", (1, 2))
    assert (first.n, first.alpha, first.weights, first.trace, first.shown) == (
        2, 2.0, {"e": 0.5}, "steps", 3,
    )  # fmt: skip
    sampling = first.sampling
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.0, 0.5)
    assert (sampling.seed, sampling.stop, sampling.logit_bias) == (-3, ("x",), {12: -100.0})
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (1.0, -2.0)
    assert (asked.stream, asked.include_usage, asked.logprobs) == (True, True, 3)


def test_defaults():
    request = completion().requests[0]
    assert (request.sampling.max_tokens, request.sampling.temperature) == (16, 1.0)
    assert (request.alpha, request.weights, request.trace, request.shown) == (None, None, "off", 0)
    assert chat().requests[0].sampling.max_tokens == LIMITS.max_tokens
    assert completion().logprobs is None
    assert chat(logprobs=True).logprobs == 0


def test_a_trace_with_candidates_shows_more_than_the_logprobs_asked():
    asked = completion(logprobs=1, steering={"trace": "candidates"})
    assert (asked.logprobs, asked.requests[0].shown, asked.trace) == (1, 20, "candidates")


def test_both_spellings_of_max_tokens_mean_the_same():
    assert chat(max_tokens=3).requests == chat(max_completion_tokens=3).requests


def test_messages_as_text_and_parts_and_as_answers_sent_back():
    asked = chat(
        messages=[
            {"role": "developer", "content": "d"},
            {"role": "user", "content": [{"type": "text", "text": t} for t in "ab"]},
            {"role": "assistant", "content": "c", "refusal": None, "tool_calls": [], "audio": None},
        ]
    )
    turns = (Message("system", "d"), Message("user", "a\nb"), Message("assistant", "c"))
    assert asked.requests[0].prompt == Chat(turns)


UNSUPPORTED = [
    ("tools", [{"type": "function", "function": {"name": "f"}}]),
    ("tool_choice", "auto"),
    ("functions", [{"name": "f"}]),
    ("function_call", "auto"),
    ("response_format", {"type": "json_object"}),
    ("response_format", {"type": "json_schema", "json_schema": {}}),
    ("audio", {"voice": "v"}),
    ("modalities", ["text", "audio"]),
    ("web_search_options", {}),
    ("prediction", {"type": "content"}),
    ("best_of", 2),
    ("best_of", True),
    ("suffix", "s"),
    ("reasoning_effort", "low"),
    ("verbosity", "low"),
    ("chat_template", "x"),
    ("chat_template_kwargs", {"a": 1}),
    ("prompt_logprobs", 1),
    ("top_k", 40),
    ("min_p", 0.1),
    ("thinking", {"type": "enabled"}),
    ("tempature", 0.5),
]


@pytest.mark.parametrize("ask", [completion, chat])
@pytest.mark.parametrize(("name", "value"), UNSUPPORTED)
def test_what_would_change_the_output_and_is_not_supported_is_refused_by_name(ask, name, value):
    with pytest.raises(UnsupportedParameter) as refusal:
        ask(**{name: value})
    assert refusal.value.param == name
    assert name in refusal.value.message


@pytest.mark.parametrize("lookahead", [1, 16, 256, "auto", "stream", None])
def test_how_far_to_look_ahead_can_be_asked(lookahead):
    (request,) = completion(steering={"lookahead": lookahead}).requests
    assert request.lookahead == lookahead


@pytest.mark.parametrize("lookahead", [0, -1, 257, 2.5, True, "far", [4]])
def test_how_far_to_look_ahead_must_make_sense(lookahead):
    with pytest.raises(BadRequest, match="lookahead: must be 1 to 256") as refusal:
        completion(steering={"lookahead": lookahead})
    assert refusal.value.param == "steering.lookahead"


def test_unsupported_fields_inside():
    for fields, param in [
        ({"steering": {"choice": ["A"]}}, "steering.choice"),
        ({"stream": True, "stream_options": {"x": 1}}, "stream_options.x"),
    ]:
        with pytest.raises(UnsupportedParameter) as refusal:
            completion(**fields)
        assert refusal.value.param == param
    with pytest.raises(UnsupportedParameter) as refusal:
        chat(echo=True)
    assert refusal.value.param == "echo"
    for messages in [
        user([{"type": "image_url", "image_url": {"url": "u"}}]),
        user([{"type": "input_audio", "input_audio": {}}]),
    ]:
        with pytest.raises(UnsupportedParameter) as refusal:
            chat(**messages)
        assert refusal.value.param == "messages"
    with pytest.raises(UnsupportedParameter) as refusal:
        chat(messages=[{"role": "user", "content": "p", "name": "n"}])
    assert refusal.value.param == "messages[0].name"


BAD = [
    (completion, {"model": ""}, "model"),
    (completion, {"model": None}, "model"),
    (completion, {"model": 7}, "model"),
    (completion, {"prompt": None}, "prompt"),
    (completion, {"prompt": ""}, "prompt"),
    (completion, {"prompt": []}, "prompt"),
    (completion, {"prompt": ["a", ""]}, "prompt"),
    (completion, {"prompt": [[]]}, "prompt"),
    (completion, {"prompt": [1, -2]}, "prompt"),
    (completion, {"prompt": [1, True]}, "prompt"),
    (completion, {"prompt": [1, 2.0]}, "prompt"),
    (completion, {"prompt": ["a", 2]}, "prompt"),
    (completion, {"prompt": {"a": 1}}, "prompt"),
    (completion, {"prompt": ["a"] * (MAX_CHOICES + 1)}, "n"),
    (completion, {"prompt": ["a"] * 2, "n": MAX_CHOICES}, "n"),
    (completion, {"n": 0}, "n"),
    (completion, {"n": MAX_CHOICES + 1}, "n"),
    (completion, {"n": "1"}, "n"),
    (completion, {"max_tokens": 0}, "max_tokens"),
    (completion, {"max_tokens": -1}, "max_tokens"),
    (completion, {"max_tokens": 1.5}, "max_tokens"),
    (completion, {"max_tokens": "5"}, "max_tokens"),
    (completion, {"max_tokens": True}, "max_tokens"),
    (completion, {"temperature": -0.1}, "temperature"),
    (completion, {"temperature": 2.1}, "temperature"),
    (completion, {"temperature": "0"}, "temperature"),
    (completion, {"top_p": 0}, "top_p"),
    (completion, {"top_p": 1.1}, "top_p"),
    (completion, {"seed": 2**63}, "seed"),
    (completion, {"seed": 1.0}, "seed"),
    (completion, {"stop": ""}, "stop"),
    (completion, {"stop": ["a", ""]}, "stop"),
    (completion, {"stop": list("abcde")}, "stop"),
    (completion, {"stop": ["a" * 65]}, "stop"),
    (completion, {"stop": [1]}, "stop"),
    (completion, {"stop": 1}, "stop"),
    (completion, {"presence_penalty": 2.5}, "presence_penalty"),
    (completion, {"frequency_penalty": -2.5}, "frequency_penalty"),
    (completion, {"logit_bias": {"foo": 0}}, "logit_bias"),
    (completion, {"logit_bias": {"²": 0}}, "logit_bias"),
    (completion, {"logit_bias": {"-1": 0}}, "logit_bias"),
    (completion, {"logit_bias": {"1": 101}}, "logit_bias[1]"),
    (completion, {"logit_bias": [1]}, "logit_bias"),
    (completion, {"logit_bias": {str(i): 0 for i in range(301)}}, "logit_bias"),
    (completion, {"logprobs": 6}, "logprobs"),
    (completion, {"logprobs": 6, "stream": True}, "logprobs"),
    (completion, {"logprobs": -1}, "logprobs"),
    (completion, {"logprobs": True}, "logprobs"),
    (completion, {"stream": "yes"}, "stream"),
    (completion, {"stream_options": {"include_usage": True}}, "stream_options"),
    (completion, {"stream": True, "stream_options": {"include_usage": 1}},
     "stream_options.include_usage"),
    (completion, {"steering": 1}, "steering"),
    (completion, {"steering": {"alpha": "1"}}, "steering.alpha"),
    (completion, {"steering": {"weights": {"e": "1"}}}, "steering.weights.e"),
    (completion, {"steering": {"trace": "all"}}, "steering.trace"),
    (completion, {"steering": {"trace": 1}}, "steering.trace"),
    *[
        (ask, {"steering": {"choices": choices}}, "steering.choices")
        for ask in (completion, chat)
        for choices in (
            "AB", {"A": 1}, ["A", 2], [], ["A"], ["A", ""], ["A", " "], ["A", "A"], ["A", " A"],
            ["A", "b" * 65], [f"l{i}" for i in range(65)],
        )
    ],
    *[
        (completion, {"steering": {"choices": ["A", "B"]}, name: value}, name)
        for name, value in {
            "n": 2, "stop": "x", "logit_bias": {"1": 1}, "presence_penalty": 1,
            "frequency_penalty": 1, "logprobs": 1, "echo": True,
        }.items()
    ],
    (chat, {"steering": {"choices": ["A", "B"]}, "logprobs": True}, "logprobs"),
    (chat, {"messages": []}, "messages"),
    (chat, {"messages": None}, "messages"),
    (chat, {"messages": "hi"}, "messages"),
    (chat, {"messages": ["hi"]}, "messages[0]"),
    (chat, {"messages": [{"role": "user", "content": "a"}] * 257}, "messages"),
    (chat, {"messages": [{"role": "user"}]}, "messages[0].content"),
    (chat, {"messages": [{"role": "tool", "content": "a"}]}, "messages[0].role"),
    (chat, user(7), "messages[0].content"),
    (chat, user(["a"]), "messages[0].content"),
    (chat, user([{"type": "text"}]), "messages[0].content"),
    (chat, {"top_logprobs": 2}, "top_logprobs"),
    (chat, {"top_logprobs": 2, "logprobs": False}, "top_logprobs"),
    (chat, {"top_logprobs": 6, "logprobs": True}, "top_logprobs"),
    (chat, {"logprobs": 2}, "logprobs"),
    (chat, {"max_tokens": 3, "max_completion_tokens": 3}, "max_completion_tokens"),
]  # fmt: skip


@pytest.mark.parametrize(("ask", "fields", "param"), BAD)
def test_mistakes_are_refused_by_name(ask, fields, param):
    with pytest.raises(BadRequest) as refusal:
        ask(**fields)
    error = refusal.value.body()["error"]
    assert (error["type"], error["param"]) == ("invalid_request_error", param)
    assert error["code"] == "invalid_value"


@pytest.mark.parametrize(
    "raw",
    [
        b"", b"{", b"[]", b"null", b'"x"', b"\xff", b'{"model": NaN}', b'{"model": "m"} x',
        b'{"model": "m", "prompt": "\\ud800"}', b"[" * 5000, b'{"a":' * 5000,
        b'{"model": "m", "prompt": "p", "seed": ' + b"9" * 5000 + b"}",
        b'{"model": "m", "prompt": "p", "temperature": 1e999}',
        b'{"model": "m", "prompt": "p", "steering": {"alpha": -Infinity}}',
    ],
)  # fmt: skip
@pytest.mark.parametrize("read", [read_completion, read_chat])
def test_what_is_no_json_object_of_finite_numbers_is_refused(read, raw):
    with pytest.raises(BadRequest):
        read(raw, LIMITS)


@pytest.mark.parametrize(("ask", "fields", "param"), BAD)
def test_the_message_never_repeats_the_value(ask, fields, param):
    canary = {"prompt": ["canary-7Q", ""]} if ask is completion else user([{"type": "canary-7Q"}])
    with pytest.raises(BadRequest) as refusal:
        ask(**(fields | canary))
    assert "canary-7Q" not in str(refusal.value.body())


@pytest.mark.parametrize(
    ("control", "use"),
    [
        ("", "use"),
        ("max-age=0, only-if-cached, x=no-store", "use"),
        ("no-cache", "refresh"),
        ("max-age=0, No-Cache", "refresh"),
        ("no-store", "bypass"),
        ("NO-STORE,no-cache", "bypass"),
    ],
)
def test_cache_control(control, use):
    assert cache_use(control) == use
    assert {r.cache for r in completion(prompt=["a", "b"]).using(use).requests} == {use}
