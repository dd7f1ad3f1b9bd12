"""Ceilings of parameters, bodies and depth; templates are the operator's alone (F6, F10)."""

import json
import resource

import httpx
import pytest

from adapter.service.app import MAX_BODY
from adapter.service.wire import (
    MAX_BIASES,
    MAX_CHOICES,
    MAX_DEPTH,
    MAX_MESSAGES,
    MAX_STOP_LENGTH,
    MAX_STOPS,
)

HUGE = 10**30
TURN = {"role": "user", "content": "p"}
START = {
    "completions": {"model": "m", "prompt": "p"},
    "chat/completions": {"model": "m", "messages": [TURN]},
}

BOTH = {
    "max_tokens": (100, [0, -1]),
    "n": (MAX_CHOICES, [0, MAX_CHOICES + 1, HUGE]),
    "stop": (["x" * MAX_STOP_LENGTH] * MAX_STOPS, [
        ["x"] * (MAX_STOPS + 1), ["x" * (MAX_STOP_LENGTH + 1)], [""], ["x"] * 100_000,
        "x" * 900_000,
    ]),
    "temperature": (2, [2.001, -0.001, 1e300, HUGE]),
    "top_p": (1, [0, 1.001, -1]),
    "presence_penalty": (2, [2.001, -2.001]),
    "frequency_penalty": (-2, [2.001, -2.001]),
    "seed": (2**63 - 1, [2**63, -(2**63) - 1, HUGE]),
    "logit_bias": ({str(i): 100 for i in range(MAX_BIASES)}, [
        {str(i): 1 for i in range(MAX_BIASES + 1)}, {"1": 100.001}, {"1": -101},
        {str(i): 1 for i in range(50_000)}, {"9" * 1000: 1},
    ]),
}  # fmt: skip

COMPLETIONS = {
    "logprobs": (5, [6, -1, HUGE]),
    "prompt": (["p"] * MAX_CHOICES, [
        ["p"] * (MAX_CHOICES + 1), [], "", [[]], ["p"] * 200_000, [-1], [[HUGE, -1]], [0.5],
    ]),
}  # fmt: skip

CHATS = {
    "top_logprobs": (5, [6, -1, HUGE]),
    "max_completion_tokens": (100, [0, -1]),
    "messages": ([TURN] * MAX_MESSAGES, [[TURN] * (MAX_MESSAGES + 1), [], [TURN] * 25_000]),
}

CASES = [
    (path, field, within, beyond)
    for path, fields in (("completions", BOTH | COMPLETIONS), ("chat/completions", BOTH | CHATS))
    for field, (within, beyond) in fields.items()
]


def post(address: str, path: str, body: bytes) -> httpx.Response:
    headers = {"content-type": "application/json"}
    return httpx.post(f"{address}/v1/{path}", content=body, headers=headers, timeout=30)


def body(path: str, field: str, value: object) -> bytes:
    shown = {"logprobs": True} if field == "top_logprobs" else {}
    return json.dumps(START[path] | shown | {field: value}).encode()


def refusal(response: httpx.Response) -> dict:
    assert response.status_code == 400
    error = response.json()["error"]
    assert error["type"] == "invalid_request_error"
    assert len(response.content) < 1_000, "what was sent is not sent back"
    return error


@pytest.mark.parametrize(("path", "field", "within", "beyond"), CASES)
def test_every_parameter_has_a_ceiling(hello, path, field, within, beyond):
    """F6: the bound is allowed, one more and huge ones are refused by name."""
    assert post(hello, path, body(path, field, within)).status_code == 200
    for value in beyond:
        error = refusal(post(hello, path, body(path, field, value)))
        assert error["param"] is None or error["param"].startswith((field, "n")), error


@pytest.mark.parametrize("open_close", [(b"[", b"]"), (b'{"a":', b"}")])
@pytest.mark.parametrize("path", START)
def test_a_body_is_only_so_deep(hello, path, open_close):
    """F6: 64 levels, the body itself being the first."""
    start = json.dumps(START[path]).encode()[:-1] + b', "user": '
    opening, closing = open_close
    for depth in (MAX_DEPTH - 1, MAX_DEPTH, 500, 5_000, MAX_BODY // 8):
        response = post(hello, path, start + opening * depth + b"1" + closing * depth + b"}")
        assert response.status_code == (200 if depth < MAX_DEPTH else 400), depth


def test_huge_requests_leave_no_memory_behind(hello):
    """F6: at most 50 MB more."""
    huge = [
        (path, body(path, field, value))
        for path, field, _, beyond in CASES
        for value in beyond
        if len(str(value)) > 10_000
    ]
    assert len(huge) >= 8
    for path, data in huge:
        post(hello, path, data)
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    for path, data in huge * 5:
        assert post(hello, path, data).status_code == 400
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss - before < 50_000  # kB


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("chat_template", "{{ messages }}"),
        ("chat_template_kwargs", {"a": 1}),
        ("add_generation_prompt", False),
        ("continue_final_message", True),
        ("documents", [{"text": "x"}]),
        ("tools", [{"type": "function", "function": {"name": "f"}}]),
        ("tool_choice", "auto"),
        ("response_format", {"type": "json_object"}),
        ("guided_regex", "(a+)+$"),
        ("structured_outputs", {"regex": "(a+)+$"}),
        ("best_of", 2),
        ("suffix", "s"),
        ("top_k", 5),
        ("reasoning_effort", "low"),
        ("cache_salt", "s"),
        ("tenant", "t"),
        ("no_such_field", 1),
        ("steering", {"no_such_field": 1}),
        ("steering", {"templates": {"upstream": "x"}}),
    ],
)
@pytest.mark.parametrize("path", START)
def test_templates_are_ours_and_unknown_fields_are_refused_by_name(hello, path, field, value):
    """F10"""
    error = refusal(post(hello, path, body(path, field, value)))
    assert error["code"] == "unsupported_parameter"
    assert error["param"].split(".")[0] == field
