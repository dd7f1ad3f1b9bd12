"""Routes, statuses, headers and the shape of errors."""

import json
import logging

import httpx
import openai
import pytest

from adapter.errors import (
    BudgetExceeded,
    ContextTooLong,
    MoneyExceeded,
    PairError,
    UpstreamError,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.service.app import MAX_BODY
from tests.support.scripted_adapter import ScriptedAdapter

BODY = {"model": "m", "prompt": "p"}


def refusal(response: httpx.Response) -> dict:
    """The error of a response, which always has all four keys."""
    error = response.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert isinstance(error["message"], str)
    assert response.headers["x-request-id"]
    return error


def test_health(hello):
    assert httpx.get(f"{hello}/healthz").json() == {"status": "ok"}


@pytest.mark.parametrize(
    ("method", "path", "status", "code"),
    [
        ("GET", "/?other", 404, "unknown_url"),
        ("POST", "/v1/responses", 404, "unknown_url"),
        ("POST", "/v1/completions/", 404, "unknown_url"),
        ("GET", "/docs", 404, "unknown_url"),
        ("GET", "/v1/completions", 405, "method_not_allowed"),
        ("POST", "/v1/models", 405, "method_not_allowed"),
    ],
)
def test_unknown_routes_and_methods(hello, method, path, status, code):
    response = httpx.request(method, hello + path, json={})
    assert response.status_code == status
    assert refusal(response)["code"] == code
    assert "x-should-retry" not in response.headers


@pytest.mark.parametrize("path", ["completions", "chat/completions"])
@pytest.mark.parametrize(
    "kind", [None, "text/plain", "application/x-www-form-urlencoded", "multipart/form-data"]
)
def test_only_json_is_read(hello, path, kind):
    headers = {"content-type": kind} if kind else {}
    response = httpx.post(f"{hello}/v1/{path}", content=b"{}", headers=headers)
    assert (response.status_code, refusal(response)["code"]) == (415, "media_type")


def test_a_content_type_may_name_its_charset(hello):
    headers = {"content-type": "Application/JSON; charset=utf-8"}
    response = httpx.post(f"{hello}/v1/completions", content=json.dumps(BODY), headers=headers)
    assert response.status_code == 200


@pytest.mark.parametrize("size", [MAX_BODY + 1, 3 * MAX_BODY])
def test_a_body_that_is_too_large(hello, size):
    start = json.dumps(BODY | {"user": "u"}).encode().removesuffix(b'u"}')
    for length, status in ((MAX_BODY, 200), (size, 413)):
        content = start + b"u" * (length - len(start) - 2) + b'"}'
        response = httpx.post(
            f"{hello}/v1/completions",
            content=content,
            headers={"content-type": "application/json"},
        )
        assert (len(content), response.status_code) == (length, status)


def test_bad_requests_reach_the_official_client_as_such(hello):
    with openai.OpenAI(base_url=f"{hello}/v1", api_key="none") as client:
        with pytest.raises(openai.BadRequestError) as raised:
            client.completions.create(model="m", prompt="p", temperature=3)
        assert (raised.value.param, raised.value.code) == ("temperature", "invalid_value")
        with pytest.raises(openai.BadRequestError) as raised:
            client.completions.create(model="m", prompt="p", stream=True, suffix="s")
        assert (raised.value.param, raised.value.code) == ("suffix", "unsupported_parameter")


@pytest.mark.parametrize(
    ("error", "status", "retry"),
    [
        (ContextTooLong("long", param="prompt"), 400, None),
        (BudgetExceeded("over"), 429, "false"),
        (MoneyExceeded("over"), 402, "false"),
        (UpstreamError("failed"), 502, "false"),
        (UpstreamRefused("wrong key"), 502, "false"),
        (UpstreamMalformed("odd"), 502, "false"),
        (UpstreamUnavailable("down"), 503, "true"),
        (UpstreamTimeout("slow"), 504, "true"),
        (PairError("gone"), 500, "false"),
        (ZeroDivisionError("secret words"), 500, "false"),
    ],
)
@pytest.mark.parametrize("where", ["prepare", "run"])
def test_failures_have_a_status_and_say_whether_to_retry(serve, error, status, retry, where):
    adapter = ScriptedAdapter(refusal=error) if where == "prepare" else ScriptedAdapter((error,))
    response = httpx.post(f"{serve(adapter)}/v1/completions", json=BODY)
    assert response.status_code == status
    assert response.headers.get("x-should-retry") == retry
    told = refusal(response)
    assert (told["code"], told["param"]) == (
        getattr(error, "code", None),
        getattr(error, "param", None),
    )
    assert "secret words" not in response.text


def test_an_unexpected_error_is_logged_once_and_without_its_message(serve, caplog):
    with caplog.at_level(logging.DEBUG):
        address = serve(ScriptedAdapter((ZeroDivisionError("secret words"),)))
        httpx.post(f"{address}/v1/completions", json=BODY | {"prompt": "canary-7Q"})
    errors = [record for record in caplog.records if record.levelno >= logging.WARNING]
    assert len(errors) == 1
    assert "unexpected ZeroDivisionError" in errors[0].getMessage()
    assert "secret words" not in caplog.text
    assert "canary-7Q" not in caplog.text


def test_the_adapter_is_closed_when_the_service_stops(settings):
    from adapter.service.app import create_app
    from tests.support.sockets import serving

    adapter = ScriptedAdapter()
    with serving(create_app(adapter, settings)):
        assert not adapter.closed
    assert adapter.closed
