"""Faults of an upstream on a real socket: each gives one typed error that says what to do."""

import asyncio
import email.utils
import logging
import socket
import ssl
import time
import traceback
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
import trustme

from adapter.errors import (
    AdapterError,
    BudgetExceeded,
    ContextTooLong,
    SettingsError,
    UpstreamMalformed,
    UpstreamRefused,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.prefix import Prefix
from adapter.upstream import connect
from adapter.upstream.retries import retry_after
from adapter.upstream.transport import Answer, Endpoint, Transport
from tests.adapter.upstream.vocabularies import BYTES, Allowed, sample
from tests.support.scripted import Reply, Scripted, classic, scripted

GOOD = Reply(body=classic({"a": -0.1}))
KEY = "sk-very-secret"
PROMPT = [71017101, 71027102, 71037103]
WAIT_STATUSES = [429, 500, 502, 503, 504]


class Naps(list[float]):
    """A sleep that only takes note."""

    async def __call__(self, seconds: float) -> None:
        self.append(seconds)


def endpoint(base_url: str, timeout: float = 30.0) -> Endpoint:
    return Endpoint(base_url, "hosted-model", KEY, "HOSTED_KEY", timeout)


async def call(
    script: Scripted, *, naps: Naps | None = None, budget: Allowed | None = None, limit: float = 30
) -> Answer:
    transport = Transport(endpoint(script.base_url, limit), sleep=Naps() if naps is None else naps)
    try:
        return await transport.complete(PROMPT, {"max_tokens": 1}, budget or Allowed())
    finally:
        await transport.close()


async def test_only_known_authorities_are_told_the_key(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    authority, context = trustme.CA(), ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    authority.issue_cert("127.0.0.1").configure_cert(context)
    authority.cert_pem.write_to_path(str(tmp_path / "ca.pem"))
    with scripted(GOOD, tls=context) as script:
        with pytest.raises(UpstreamUnavailable, match="no connection"):
            await call(script)
        assert script.calls == 0
        monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "ca.pem"))
        await call(script)
    assert script.headers[0]["authorization"] == f"Bearer {KEY}"


async def test_asks_with_key_and_all_fields() -> None:
    with scripted(GOOD) as script:
        answer = await call(script)
    assert script.requests == [{"model": "hosted-model", "prompt": PROMPT, "max_tokens": 1}]
    assert script.headers[0]["authorization"] == f"Bearer {KEY}"
    assert answer.calls == 1
    assert answer.body == classic({"a": -0.1})


async def test_the_environment_does_not_reach_the_upstream(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    for name in ("OPENAI_API_KEY", "OPENAI_ORG_ID", "OPENAI_PROJECT_ID", "OPENAI_ADMIN_KEY"):
        monkeypatch.setenv(name, "from-the-environment")
    monkeypatch.setenv("HTTP_PROXY", "http://127.0.0.1:1")
    with scripted(GOOD) as script:
        transport = Transport(Endpoint(script.base_url, "m"))
        await transport.complete(PROMPT, {}, Allowed())
        await transport.close()
    assert "from-the-environment" not in str(script.headers)


@pytest.mark.parametrize(
    ("status", "said"),
    [
        (401, "does not accept the key: check HOSTED_KEY"),
        (403, "may not use this model: check HOSTED_KEY"),
        (404, "no model 'hosted-model'"),
        (400, "gives no reason"),
        (422, "gives no reason"),
        (302, "redirects"),
    ],
)
async def test_a_refusal_is_not_tried_again(status: int, said: str) -> None:
    with (
        scripted(Reply(status, headers={"location": "http://127.0.0.1:1/v1"})) as script,
        pytest.raises(UpstreamRefused, match=said) as caught,
    ):
        await call(script)
    assert script.calls == 1
    assert "127.0.0.1" in str(caught.value)


@pytest.mark.parametrize(
    ("server", "case", "said"),
    [
        ("vllm", "unknown_model", "no model"),
        ("vllm", "too_many_logprobs", "logprobs of 101, which is greater than max allowed: 100"),
        ("vllm", "wrong_type", "type Bad Request, param body.max_tokens"),
        ("llama_server", "bad_id", "Prompt contains invalid tokens"),
    ],
)
async def test_recorded_refusals(server: str, case: str, said: str) -> None:
    recorded = sample(server, case)
    with (
        scripted(Reply(recorded["status"], recorded["response"])) as script,
        pytest.raises(UpstreamRefused, match=said) as caught,
    ):
        await call(script)
    assert "many" not in str(caught.value)


@pytest.mark.parametrize("server", ["vllm", "llama_server"])
async def test_a_prompt_too_long_is_the_clients_matter(server: str) -> None:
    recorded = sample(server, "too_long")
    with (
        scripted(Reply(recorded["status"], recorded["response"])) as script,
        pytest.raises(ContextTooLong, match="512 tokens"),
    ):
        await call(script)


@pytest.mark.parametrize("status", WAIT_STATUSES)
async def test_a_passing_fault_is_tried_again_and_every_attempt_counts(status: int) -> None:
    naps, budget = Naps(), Allowed()
    with scripted(Reply(status), Reply(status), GOOD) as script:
        answer = await call(script, naps=naps, budget=budget)
    assert answer.calls == script.calls == budget.taken == 3
    assert len(naps) == 2
    assert all(0 <= nap <= (4 if status == 429 else 1) for nap in naps)


@pytest.mark.parametrize("status", WAIT_STATUSES)
async def test_a_lasting_fault_ends_after_three_attempts(status: int) -> None:
    with (
        scripted(Reply(status)) as script,
        pytest.raises(UpstreamUnavailable, match=f"answered {status}"),
    ):
        await call(script)
    assert script.calls == 3


async def test_a_model_that_is_still_loading() -> None:
    error = {"message": "Loading model", "type": "unavailable_error", "code": 503}
    with scripted(Reply(503, {"error": error}), GOOD) as script:
        assert (await call(script)).calls == 2


async def test_an_empty_account_is_not_waited_for() -> None:
    error = {"message": "You exceeded your current quota", "code": "insufficient_quota"}
    with (
        scripted(Reply(429, {"error": error})) as script,
        pytest.raises(UpstreamRefused, match="quota is used up"),
    ):
        await call(script)
    assert script.calls == 1


@pytest.mark.reliability("C3")
async def test_retries_stop_where_the_budget_ends() -> None:
    with (
        scripted(Reply(500)) as script,
        pytest.raises(BudgetExceeded),
    ):
        await call(script, budget=Allowed(2))
    assert script.calls == 2


async def test_retry_after_is_waited_for() -> None:
    naps = Naps()
    with scripted(Reply(429, headers={"retry-after": "7"}), GOOD) as script:
        await call(script, naps=naps, limit=30)
    assert 7 <= naps[0] <= 11


async def test_a_long_retry_after_is_not() -> None:
    naps = Naps()
    with (
        scripted(Reply(429, headers={"retry-after": "11"}), GOOD) as script,
        pytest.raises(UpstreamUnavailable, match="much later"),
    ):
        await call(script, naps=naps)
    assert (script.calls, naps) == (1, [])


@pytest.mark.parametrize(
    ("header", "seconds"),
    [
        (None, 0),
        ("0", 0),
        ("1.5", 1.5),
        ("-3", 0),
        ("inf", float("inf")),
        ("nan", 0),
        ("soon", 0),
        (email.utils.formatdate(1060, usegmt=True), 60),
        (email.utils.formatdate(940, usegmt=True), 0),
    ],
)
def test_reads_retry_after(header: str | None, seconds: float) -> None:
    assert retry_after(header, 1000.0) == seconds


async def test_down() -> None:
    with scripted(GOOD) as script:
        pass
    budget = Allowed()
    with pytest.raises(UpstreamUnavailable, match="no connection") as caught:
        await call(script, budget=budget)
    assert budget.taken == 3
    assert "/v1" not in str(caught.value)


async def test_a_host_that_drops_connections_is_unavailable() -> None:
    # Nobody accepts: one connection fills the queue, and later ones get no answer.
    with (
        socket.create_server(("127.0.0.1", 0), backlog=0) as full,
        socket.create_connection(full.getsockname()),
    ):
        url = f"http://127.0.0.1:{full.getsockname()[1]}/v1"
        transport = Transport(endpoint(url, 20), connect=0.05, sleep=Naps())
        with pytest.raises(UpstreamUnavailable, match="no connection"):
            await transport.complete(PROMPT, {}, Allowed())
        await transport.close()


@pytest.mark.parametrize("key", ["sk-1\n", " sk-1", "ключ", ""])
def test_a_key_that_no_header_can_carry(key: str) -> None:
    with pytest.raises(SettingsError, match="HOSTED_KEY") as caught:
        Endpoint("http://127.0.0.1:1/v1", "m", key, "HOSTED_KEY")
    assert not key or key not in str(caught.value)


async def test_a_cut_answer_is_tried_again() -> None:
    with scripted(Reply(body=GOOD.body, cut=40), GOOD) as script:
        assert (await call(script)).calls == 2


async def test_silence_ends_at_the_deadline() -> None:
    start = time.monotonic()
    with scripted(Reply(silent=True)) as script:
        with pytest.raises(UpstreamTimeout, match=r"within 0\.2 s"):
            await call(script, limit=0.2)
        assert time.monotonic() - start < 2
        assert script.calls == 1


async def test_the_deadline_holds_over_all_attempts() -> None:
    """No attempt begins, nor is one waited for, that would come after it."""
    naps = Naps()
    with scripted(Reply(500, headers={"retry-after": "3"})) as script:
        with pytest.raises(UpstreamUnavailable, match="answered 500"):
            await call(script, naps=naps, limit=2.9)
        assert (script.calls, naps) == (1, [])
    with scripted(Reply(500), Reply(silent=True)) as script:
        with pytest.raises(UpstreamTimeout):
            await call(script, limit=0.6)
        assert script.calls == 2


@pytest.mark.parametrize(
    "body",
    [b"", b"<html>", b"[]", b"3", b'{"a": ', b"\xff\xfe", b"[" * 10_000, b'{"a":' * 10_000],
    ids=["empty", "html", "list", "number", "half", "not utf-8", "deep list", "deep object"],
)
async def test_what_is_no_json_object(body: bytes) -> None:
    with (
        scripted(Reply(body=body)) as script,
        pytest.raises(UpstreamMalformed, match="no JSON object"),
    ):
        await call(script)
    assert script.calls == 1


@pytest.mark.parametrize(
    "number", ["NaN", "Infinity", "-Infinity", "1e999", "null", '"x"', "-9999.0", "9" * 400]
)
async def test_what_is_no_number_is_no_candidate(number: str) -> None:
    shown = b'{"choices":[{"text":"a","finish_reason":"length","logprobs":{"tokens":["a"],'
    shown += b'"token_logprobs":[-0.5],"top_logprobs":[{"a":-0.5,"b":%b}]}}]}' % number.encode()
    with scripted(Reply(body=shown)) as script:
        upstream = connect(endpoint(script.base_url), api="completions", vocabulary=BYTES)
        draft = await upstream.draft(Prefix.of(PROMPT), 1, Allowed())
        await upstream.close()
    assert [c.token for c in draft.positions[0].candidates] == [b"a"]


LEAKS: list[Any] = [
    {"error": {"message": f"bad input {PROMPT}", "type": f"{PROMPT}", "param": str(PROMPT)}},
    {"error": f"{PROMPT}"},
    {"message": f"input: {PROMPT} {KEY}", "object": "error", "code": 400},
    sample("llamacpp_python", "ids_refused")["response"],
    f"{PROMPT} {KEY}".encode(),
]


@pytest.mark.reliability("F3")
@pytest.mark.reliability("F4")
@pytest.mark.parametrize("status", [400, 401, 404, 422, 429, 500])
@pytest.mark.parametrize("body", LEAKS)
async def test_neither_key_nor_prompt_shows_in_errors_or_logs(
    status: int, body: Any, caplog: pytest.LogCaptureFixture
) -> None:
    caplog.set_level(logging.DEBUG)
    with scripted(Reply(status, body)) as script:
        transport = Transport(endpoint(script.base_url), sleep=Naps())
        with pytest.raises(AdapterError) as caught:
            await transport.complete(PROMPT, {}, Allowed())
        shown = f"{caught.value!r} {caught.value} {endpoint(script.base_url)!r} {transport!r}"
        await transport.close()
    trace = "".join(traceback.format_exception(caught.value))
    for text in (shown, trace, caplog.text):
        assert KEY not in text
        assert "71027102" not in text
        assert "1051, 1393" not in text


@pytest.fixture
async def many() -> AsyncIterator[tuple[Scripted, Transport]]:
    with scripted(GOOD) as script:
        transport = Transport(endpoint(script.base_url))
        yield script, transport
        await transport.close()


async def test_calls_run_side_by_side(many: tuple[Scripted, Transport]) -> None:
    script, transport = many
    budget = Allowed()
    calls = (transport.complete([i], {}, budget) for i in range(50))
    answers = await asyncio.gather(*calls)
    assert [a.calls for a in answers] == [1] * 50
    assert script.calls == 50
