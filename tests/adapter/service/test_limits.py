"""How much at once and how often: what is over is refused at once."""

import contextlib
import json
import socket
import time
from collections.abc import Callable, Iterator
from http.client import HTTPResponse
from types import SimpleNamespace
from urllib.parse import urlsplit

import httpx
import limits.storage.memory
import openai
import pytest

from adapter.service import app as service_app
from adapter.service import limits as service_limits
from adapter.service.app import create_app
from adapter.settings import ServiceSettings, Settings
from tests.support.keys import KEY, OTHER, bearer, key_settings
from tests.support.scripted_adapter import HANG, ScriptedAdapter, step
from tests.support.sockets import serving

BODY = {"model": "m", "prompt": "p"}
STREAM = BODY | {"stream": True}
HANGING = (step("Hi"), HANG)


@contextlib.contextmanager
def limited(settings: Settings, *keys, most: int = 64, script=None) -> Iterator[str]:
    changes = {"keys": keys, "service": ServiceSettings(max_concurrency=most)}
    adapter = ScriptedAdapter() if script is None else ScriptedAdapter(script)
    with serving(create_app(adapter, settings.model_copy(update=changes))) as address:
        yield address


@contextlib.contextmanager
def held(address: str, key: str | None = None) -> Iterator[None]:
    """A stream that has begun and goes on until the end of the block."""
    headers = bearer(key) if key else {}
    with httpx.stream("POST", f"{address}/v1/completions", json=STREAM, headers=headers) as stream:
        assert stream.status_code == 200
        yield


def ask(address: str, key: str | None = None) -> httpx.Response:
    headers = bearer(key) if key else {}
    return httpx.get(f"{address}/v1/models", headers=headers)


def until(holds: Callable[[], bool]) -> None:
    end = time.monotonic() + 30
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def refused(response: httpx.Response) -> str:
    """The message of a refusal that says when to come back."""
    error = response.json()["error"]
    assert (response.status_code, error["type"], error["code"], error["param"]) == (
        429,
        "rate_limit_error",
        "rate_limit_exceeded",
        None,
    )
    assert response.headers["x-should-retry"] == "true"
    later = int(response.headers["retry-after-ms"])
    assert 0 < later <= 1000 * int(response.headers["retry-after"]) < later + 1000
    return error["message"]


def test_a_full_service_refuses_at_once_and_stays_healthy(settings):
    with limited(settings, most=2, script=HANGING) as address:
        with held(address), held(address):
            assert refused(ask(address)) == "the service is busy"
            response = httpx.post(f"{address}/v1/completions", json=BODY)
            assert refused(response) == "the service is busy"
            for path in ("healthz", "readyz"):
                assert httpx.get(f"{address}/{path}").status_code == 200
        until(lambda: ask(address).status_code == 200)


def test_every_place_is_given_and_given_back(settings):
    """Answered whole, streamed, or hung up on: more than there are places."""
    with limited(settings, most=2) as address, httpx.Client(base_url=address) as client:
        for number in range(20):
            body = STREAM if number % 2 else BODY
            assert client.post("/v1/completions", json=body).status_code == 200
    with limited(settings, most=2, script=HANGING) as address:
        for _ in range(10):
            until(lambda address=address: ask(address).status_code == 200)
            with held(address):
                pass
        with held(address):
            assert ask(address).status_code == 200


def test_refusals_are_spread_so_that_the_refused_do_not_come_back_together(settings):
    with limited(settings, most=1, script=HANGING) as address, held(address):
        waits = {ask(address).headers["retry-after-ms"] for _ in range(20)}
    assert len(waits) > 10
    assert all(500 <= int(wait) <= 1500 for wait in waits)


def test_a_key_may_ask_for_so_many_answers_at_once(settings):
    keys = key_settings("one", KEY, concurrency=2), key_settings("two", OTHER)
    with limited(settings, *keys, script=HANGING) as address:
        with held(address, KEY), held(address, KEY):
            assert refused(ask(address, KEY)) == "this key may ask for 2 answers at once"
            assert ask(address, OTHER).status_code == 200
        until(lambda: ask(address, KEY).status_code == 200)


def test_a_key_may_ask_so_often_in_any_minute(settings, monkeypatch):
    clock = SimpleNamespace(now=time.time())
    for module in (limits.storage.memory, service_limits):
        monkeypatch.setattr(module, "time", SimpleNamespace(time=lambda: clock.now))
    keys = key_settings("one", KEY, per_minute=3), key_settings("two", OTHER, per_minute=1)
    with limited(settings, *keys) as address:
        statuses = [ask(address, KEY).status_code for _ in range(3)]
        assert refused(ask(address, KEY)) == "this key may ask 3 times a minute"
        clock.now += 59
        assert ask(address, KEY).headers["retry-after-ms"] == "1000"
        assert ask(address, OTHER).status_code == 200
        clock.now += 1.001
        statuses += [ask(address, KEY).status_code for _ in range(4)]
    assert statuses == [200] * 6 + [429]


def test_what_is_refused_for_another_reason_does_not_count(settings):
    keys = key_settings("one", KEY, per_minute=2, concurrency=1)
    with limited(settings, keys, script=HANGING) as address:
        with held(address, KEY):
            assert {"at once" in refused(ask(address, KEY)) for _ in range(5)} == {True}
        assert ask(address, "wrong").status_code == 401
        until(lambda: ask(address, KEY).status_code == 200)
        assert "a minute" in refused(ask(address, KEY))


def test_the_official_client_comes_back_by_itself(settings):
    keys = key_settings("one", KEY, concurrency=1)
    with limited(settings, keys, script=HANGING) as address:
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=0) as client:
            with held(address, KEY), pytest.raises(openai.RateLimitError):
                client.models.list()
            until(lambda: ask(address, KEY).status_code == 200)
        with openai.OpenAI(base_url=f"{address}/v1", api_key=KEY, max_retries=9) as client:
            holding = held(address, KEY)
            holding.__enter__()
            client._sleep_for_retry = lambda **_: holding.__exit__(None, None, None)
            until(lambda: client.models.list().data[0].id == "m")


def test_a_body_that_does_not_come_gives_its_place_back(settings, monkeypatch):
    monkeypatch.setattr(service_app, "BODY_SECONDS", 0.05)
    with limited(settings, most=1) as address:
        at = urlsplit(address)
        with socket.create_connection((at.hostname, at.port), timeout=30) as slow:
            slow.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: 100\r\n\r\n{"
            )
            answer = HTTPResponse(slow)
            answer.begin()
            assert answer.status == 408
            assert json.loads(answer.read())["error"]["code"] == "timeout"
        assert ask(address).status_code == 200


def test_who_is_turned_away_is_counted(settings):
    """By what the answer says, not by who asked: labels stay few."""
    adapter = ScriptedAdapter()
    changes = {"keys": [key_settings("a", KEY, per_minute=2)]}
    with serving(create_app(adapter, settings.model_copy(update=changes))) as address:
        answers = [ask(address, key).status_code for key in (KEY, KEY, KEY, OTHER, "x", None)]
    assert answers == [200, 200, 429, 401, 401, 401]
    samples = [s for family in adapter.metrics.registry.collect() for s in family.samples]
    counts = {s.labels["code"]: s.value for s in samples if s.name == "adapter_refusals_total"}
    assert counts == {"rate_limit_exceeded": 1, "invalid_api_key": 3}
