"""Promises of the whole service that no single part can keep: see tests/RELIABILITY.md."""

import asyncio
import contextlib
import gc
import json
import logging
import random
import threading
import time
from collections.abc import Iterator
from typing import Any

import httpx
import openai
import prometheus_client
import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from adapter.service.server import settle
from adapter.settings import Settings
from tests.conftest import Measured
from tests.e2e.test_cache import pieces
from tests.support.configured import settings_for
from tests.support.counts import count
from tests.support.model_server import ModelServer, model_server
from tests.support.redis_server import ACCOUNT, needs_redis, redis_server
from tests.support.scripted import Reply, classic, events, scripted
from tests.support.sockets import serving
from tests.support.strict import Strict, strict_json
from tests.support.tiny import tiny

WAIT = 60.0
ONE = {"token_id:50": -0.1, "token_id:40": -3.0}


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with model_server(tiny().upstream) as server:
        yield server


@contextlib.contextmanager
def service(settings: Settings) -> Iterator[tuple[str, Adapter]]:
    adapter = Adapter.from_settings(settings)
    with serving(create_app(adapter, settings)) as address:
        yield address, adapter


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": "The harbour", "max_tokens": 4, "temperature": 0} | more


@pytest.mark.reliability("C5")
@pytest.mark.parametrize(
    ("reply", "limits", "status", "requests"),
    [
        (Reply(200, b"<html>"), {}, 502, 1),
        (Reply(401), {}, 502, 1),
        (Reply(400), {}, 502, 1),
        (Reply(200, classic()), {}, 502, 1),
        (Reply(500), {"calls_per_request": 1}, 429, 1),
        (Reply(200, classic(ONE)), {"money_per_request": 1e-9}, 402, 0),
    ],
)
def test_the_official_client_repeats_nothing_that_cannot_help(
    reply: Reply, limits: dict[str, Any], status: int, requests: int, measured: Measured
) -> None:
    price = {"price": {"input": 1.0, "output": 4.0}}
    with (
        scripted(reply) as script,
        service(settings_for(script.base_url, upstream=price, limits=limits)) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        assert client.max_retries == 2
        with pytest.raises(openai.APIStatusError) as caught:
            client.completions.create(**body())
    assert (caught.value.status_code, script.calls) == (status, requests)
    measured("6 kinds of errors", "1 request each")


@pytest.mark.reliability("C5")
def test_an_honest_retry_repeats_little(measured: Measured) -> None:
    """An answer of 40 tokens, one a call; the upstream breaks down at the 30th."""
    good, bad = Reply(body=classic(ONE)), Reply(503)
    with (
        scripted(*[good] * 29, *[bad] * 3, good) as script,
        service(settings_for(script.base_url, lookahead={"n": 1})) as (address, _),
        openai.OpenAI(base_url=f"{address}/v1", api_key="none") as client,
    ):
        answer = client.completions.create(**body(max_tokens=40), extra_body=_unsteered())
    asked = [json.dumps(request["prompt"]) for request in script.requests]
    repeated = len(asked) - len(set(asked))
    assert answer.usage.completion_tokens == 40
    assert (len(asked), repeated) == (43, 3)
    measured("40 tokens, 503 at the 30th", f"{repeated} of {len(asked)} calls were repeats")


def _unsteered() -> dict[str, Any]:
    return {"steering": {"alpha": 0}}


@pytest.mark.reliability("D2")
def test_a_strict_reader_can_read_every_answer(upstream: ModelServer, measured: Measured) -> None:
    """All forms of answers, from an upstream that is well and one that sends what is no number."""
    shown = {"token_id:50": -0.5, "token_id:51": float("nan"), "token_id:52": float("-inf")}
    odd = [Reply(body=classic(shown)), Reply(body=classic({"token_id:50": 0.2})), Reply(500)]
    luck, read = random.Random(2), 0
    with scripted(*odd * 200) as script:
        for base_url in (upstream.base_url, script.base_url):
            settings = settings_for(base_url, cache={"url": "none"})
            strict = Strict(create_app(Adapter.from_settings(settings), settings))
            with serving(strict) as address, httpx.Client(base_url=address, timeout=WAIT) as http:
                for path in ("healthz", "readyz", "v1/models", "v1/models/x", "nowhere"):
                    http.get(path)
                for _ in range(count(500)):
                    _ask_anything(http, luck)
            assert strict.wrong == []
            read += strict.read
    assert read > 2 * count(500)
    with pytest.raises(ValueError, match="NaN"):
        strict_json(b'{"a": NaN}')
    measured(f"{read:,} JSON texts", "0 wrong; and whatever the service writes in the whole suite")


def _ask_anything(http: httpx.Client, luck: random.Random) -> None:
    chat = luck.random() < 0.3
    asked = body(
        stream=luck.random() < 0.5,
        temperature=luck.choice((0, 1, 2)),
        seed=luck.randrange(99),
        steering={
            "alpha": luck.choice((0, 1, 4)),
            "trace": luck.choice((False, True, "candidates")),
            "lookahead": luck.choice((1, 3, "stream")),
        },
        logprobs=luck.choice((None, 0, 5)) if not chat else luck.choice((None, True)),
        logit_bias={"5": luck.choice((-100, 0, 9))},
    )
    if chat:
        asked.pop("prompt")
        asked["messages"] = [{"role": "user", "content": "Hello"}]
    if luck.random() < 0.1:
        asked["temperature"] = luck.choice((-1, "x", None))
    http.post("v1/chat/completions" if chat else "v1/completions", json=asked)


@pytest.mark.reliability("D7")
@pytest.mark.parametrize("stream", [False, True])
def test_without_its_pair_nothing_is_answered_as_steered(
    upstream: ModelServer, stream: bool, measured: Measured
) -> None:
    with service(settings_for(upstream.base_url)) as (address, adapter):
        well = httpx.post(f"{address}/v1/completions", json=body(stream=stream), timeout=WAIT)
        adapter._models["tiny"].pair.close()
        asked = body(stream=stream, prompt="Another")
        dead = httpx.post(f"{address}/v1/completions", json=asked, timeout=WAIT)
        plain = httpx.post(f"{address}/v1/completions", json=asked | _unsteered(), timeout=WAIT)
    assert (well.status_code, well.headers["x-steering"]) == (200, "on")
    assert (dead.status_code, "x-steering" in dead.headers) == (500, False)
    assert (plain.status_code, plain.headers["x-steering"]) == (200, "off")
    measured("pair dead, no or senseless log-probabilities", "an error; off only where asked for")


@pytest.fixture
def settled() -> Iterator[None]:
    """As `adapter serve` does it."""
    settle()
    yield
    gc.unfreeze()


@pytest.mark.reliability("E8")
@pytest.mark.usefixtures("settled")
def test_the_loop_stays_free(upstream: ModelServer, measured: Measured) -> None:
    """The largest of everything, while the loop of the service is asked every 5 ms.

    What it did itself in between counts by its own processor time, which other programs on a busy
    machine do not lengthen; the wall's time is told beside it.
    """
    settings = settings_for(upstream.base_url, cache={"url": "none"}, top_logprobs=400)
    app, over = create_app(Adapter.from_settings(settings), settings), threading.Event()
    stalls: list[tuple[float, float]] = []

    async def watch() -> None:
        while not over.is_set():
            begun, worked = time.perf_counter(), time.thread_time()
            await asyncio.sleep(0.005)
            waited = time.perf_counter() - begun - 0.005
            stalls.append((1e3 * (time.thread_time() - worked), 1e3 * waited))

    watching: list[asyncio.Task[None]] = []

    async def watched(scope: Any, receive: Any, send: Any) -> None:
        if scope["type"] == "http" and not watching:
            watching.append(asyncio.create_task(watch()))
        await app(scope, receive, send)

    words = "harbour " * 100_000
    deep = '{"a":' * 20_000 + "1" + "}" * 20_000
    worst: list[Any] = [
        body(prompt=words, max_tokens=1),
        body(messages=[{"role": "user", "content": "x"}] * 20_000),
        body(logit_bias={str(n): 1 for n in range(50_000)}),
        body(stop=["x" * 60] * 4, logprobs=5, n=4, temperature=1, max_tokens=16),
        body(steering={"trace": "candidates", "lookahead": 16}, max_tokens=32),
        body(steering={"trace": "candidates", "lookahead": "stream"}, max_tokens=32, stream=True),
        deep,
        "[" * 500_000,
    ]
    with serving(watched) as address, httpx.Client(base_url=address, timeout=WAIT) as http:
        http.get("healthz")
        for _ in range(count(20)):
            for asked in worst:
                raw = asked if isinstance(asked, str) else json.dumps(asked)
                headers = {"content-type": "application/json"}
                http.post("v1/completions", content=raw, headers=headers)
        over.set()
        time.sleep(0.1)
    assert watching[0].done()
    assert len(stalls) > 10
    own, wall = (max(kind) for kind in zip(*stalls, strict=True))
    assert own < 500
    run = f"{count(20) * len(worst)} requests of the worst kinds"
    measured(
        run,
        f"at most {own:.0f} ms of the loop's own work, {wall:.0f} ms by the wall clock",
        met=own <= 50,
    )


PROMPT = "3F6 zorvple quinxat 9B7"
KEY, SECRET = "8K4-hgwtfr-2N9dlc", "5Y2-qzvbxk-7W1jmp"


@pytest.mark.redis
@needs_redis
@pytest.mark.reliability("F3")
@pytest.mark.reliability("F4")
@pytest.mark.parametrize("level", ["DEBUG", pytest.param("INFO", marks=pytest.mark.full)])
def test_neither_secrets_nor_prompts_come_out_anywhere(
    upstream: ModelServer,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    level: str,
    measured: Measured,
) -> None:
    """Answers, refusals of all kinds that quote them, breakdowns; and Redis lost on the way."""
    caplog.set_level(level)
    logging.getLogger("openai").setLevel(level)
    monkeypatch.setenv("CACHE_SECRET", SECRET)
    monkeypatch.setenv("UPSTREAM_KEY", KEY)
    quoting = {"error": {"message": f"bad: {PROMPT} {KEY}", "type": PROMPT, "param": KEY}}
    ids = tiny_ids(PROMPT)
    numbers = {"error": {"message": f"bad prompt: {ids}", "code": str(ids)}}
    replies = [
        Reply(status, said) for said in (quoting, numbers) for status in (400, 401, 429, 500)
    ]
    replies += [Reply(body=f"{PROMPT} {KEY}".encode()), events(quoting), events(numbers)]
    said, secrets = [], pieces(KEY, SECRET, ACCOUNT.split(":")[1])
    with redis_server() as server, scripted(*replies) as script:
        for base_url in (upstream.base_url, script.base_url):
            settings = settings_for(
                base_url,
                upstream={"api_key_env": "UPSTREAM_KEY", "price": {"input": 1.0, "output": 4.0}},
                cache={"url": server.url(), "secret_env": "CACHE_SECRET"},
                limits={"money_per_day": 1000.0},
            )
            with service(settings) as (address, adapter):
                for number in range(count(3, 3) * len(replies)):
                    said += asked_with(address, number)
                server.kill()
                said += asked_with(address, 0)
                registry = adapter.metrics.registry
                said.append(prometheus_client.generate_latest(registry).decode())
                said += [httpx.get(f"{address}/{path}").text for path in ("healthz", "readyz")]
                adapter._models["tiny"].pair.close()
                said += asked_with(address, 1)
                said += [repr(adapter), repr(settings), repr(adapter._models)]
                said += [repr(vars(adapter._models["tiny"].upstream._inner._transport))]
            server.start()
    everything = caplog.text + "".join(said)
    places = (caplog.text, *said)
    hits = {text for p in secrets | pieces(PROMPT) for text in places if p.decode() in text}
    assert hits == set()
    assert str(ids)[1:-1] not in everything
    assert len(caplog.records) > 10
    run = f"{level}: {len(everything):,} characters of logs, errors, metrics, repr"
    measured(run, "0 hits of any 8 characters")


def tiny_ids(text: str) -> list[int]:
    from transformers import AutoTokenizer

    return list(AutoTokenizer.from_pretrained(tiny().upstream)(text)["input_ids"])


def asked_with(address: str, number: int) -> list[str]:
    """The prompt in a request of some kind, and all that is said but the text of a good answer.

    The name of a field that is refused is told to who sent it, and to nobody else.
    """
    wrong: dict[str, Any] = [{}, {"temperature": PROMPT}, {PROMPT: 1}, {"stop": [PROMPT] * 9}][
        number % 4
    ]
    fields = {"prompt": PROMPT, "stream": number % 3 == 1} | wrong
    answer = httpx.post(f"{address}/v1/completions", json=body(**fields), timeout=WAIT)
    headers = json.dumps(dict(answer.headers))
    told = (answer.status_code != 200 or "error" in answer.text) and PROMPT not in wrong
    return [headers, answer.text] if told else [headers]
