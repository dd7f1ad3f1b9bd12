"""Money over HTTP: caps, what a client is told, and nothing paid for clients that are gone."""

import asyncio
import contextlib
import json
import random
import socket
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from typing import Any

import httpx
import openai
import pytest
from starlette.types import Message, Receive, Scope, Send

from adapter.adapter import Adapter
from adapter.client import Client
from adapter.model import load_models
from adapter.price import nanos
from adapter.service.app import create_app
from tests.conftest import Measured
from tests.support.configured import settings_for
from tests.support.counts import count
from tests.support.model_server import ModelServer, model_server
from tests.support.scripted import Reply, classic, scripted
from tests.support.sockets import serving
from tests.support.tiny import tiny
from tests.support.totals import Watched, WatchedTotals

PRICE = {"input": 1.0, "output": 4.0}
"""1000 and 4000 nano-units a token."""

PROMPT = "The harbour master kept a ledger"
WAIT = 30.0


@dataclass
class Service:
    """A running service with prices, its adapter and the day's total."""

    address: str
    adapter: Adapter
    totals: WatchedTotals
    loops: list[asyncio.AbstractEventLoop]
    partings: list[int]
    """How often money had been asked for whenever the service saw a client leave."""

    @property
    def tasks(self) -> int:
        """Unfinished tasks of the service."""
        return len(asyncio.all_tasks(self.loops[0]))

    @property
    def day(self) -> Watched:
        return self.totals.day

    def ask(self, **more: Any) -> httpx.Response:
        return httpx.post(f"{self.address}/v1/completions", json=body(**more), timeout=WAIT)

    @contextlib.contextmanager
    def asking(self, **more: Any) -> Iterator[socket.socket]:
        """A request on a socket that is closed at the end of the block, answered or not."""
        host, port = self.address.removeprefix("http://").split(":")
        data = json.dumps(body(**more)).encode()
        with socket.create_connection((host, int(port))) as client:
            client.sendall(
                b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
                b"content-length: %d\r\n\r\n%s" % (len(data), data)
            )
            yield client

    @property
    def metered(self) -> int:
        """What the metrics say was spent, in nano-units."""
        name, labels = "adapter_upstream_money_total", {"model": "tiny"}
        return nanos(self.adapter.metrics.registry.get_sample_value(name, labels) or 0.0)

    @property
    def refusals(self) -> float:
        samples = (s for m in self.adapter.metrics.registry.collect() for s in m.samples)
        return sum(s.value for s in samples if s.name == "adapter_budget_refusals_total")

    @property
    def slots(self) -> int:
        """Rows of keys and values that requests hold in the pair."""
        pair = self.adapter._models["tiny"].pair
        return sum(network.pool.used for network in pair._networks.values())


def body(**more: Any) -> dict[str, Any]:
    return {"model": "tiny", "prompt": PROMPT, "max_tokens": 8, "temperature": 0} | more


@contextlib.contextmanager
def service(base_url: str, **limits: float) -> Iterator[Service]:
    settings = settings_for(
        base_url,
        upstream={"price": PRICE},
        limits={"money_per_day": 1000.0} | limits,
        cache={"url": "none"},
        lookahead={"n": 2},
    )
    totals = WatchedTotals()
    adapter = Adapter(load_models(settings), settings.limits, totals=totals)
    inner, loops, partings = create_app(adapter, settings), [], []

    async def app(scope: Scope, receive: Receive, send: Send) -> None:
        async def seen() -> Message:
            message = await receive()
            if message["type"] == "http.disconnect":
                partings.append(totals.day.takes)
            return message

        loops.append(asyncio.get_running_loop())
        await inner(scope, seen, send)

    with serving(app) as address:
        yield Service(address, adapter, totals, loops, partings)


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with model_server(tiny().upstream) as server:
        yield server


def until(holds: Callable[[], bool]) -> None:
    """Ask every 10 ms; fails after half a minute."""
    end = time.monotonic() + WAIT
    while not holds():
        assert time.monotonic() < end, "it never came to hold"
        time.sleep(0.01)


def test_the_cost_is_what_usage_says_at_the_configured_price(upstream: ModelServer) -> None:
    with service(upstream.base_url) as running:
        got = running.ask(n=2).json()
        spent = got["usage"]["upstream"]
        tokens = spent["prompt_tokens"] * 1_000 + spent["completion_tokens"] * 4_000
        assert spent["cost"] == tokens / 1e9 > 0
        assert "estimated" not in spent
        assert running.day.out == running.metered == tokens


def test_a_stream_tells_its_cost(upstream: ModelServer) -> None:
    with service(upstream.base_url) as running:
        got = running.ask(
            stream=True,
            stream_options={"include_usage": True},
            max_tokens=20,
            steering={"lookahead": "stream", "alpha": 3},
        )
        *_, last, done = got.text.strip().split("\n\n")
        spent = json.loads(last.removeprefix("data: "))["usage"]["upstream"]
        assert done == "data: [DONE]"
        assert spent["cost"] * 1e9 == pytest.approx(running.day.out, abs=1e-3)
        assert running.day.out == running.metered > 0


def test_an_upstream_that_does_not_say_what_it_billed_costs_what_was_reserved() -> None:
    silent = {k: v for k, v in classic({"token_id:50": -0.1}).items() if k != "usage"}
    with scripted(Reply(body=silent)) as script, service(script.base_url) as running:
        spent = running.ask(max_tokens=1).json()["usage"]["upstream"]
        prompt = len(script.requests[0]["prompt"])
        assert spent["estimated"] is True
        assert round(spent["cost"] * 1e9) == prompt * 1_000 + 4_000 == running.day.out


def test_without_a_price_there_is_no_cost(upstream: ModelServer) -> None:
    settings = settings_for(upstream.base_url)
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        got = httpx.post(f"{address}/v1/completions", json=body(), timeout=WAIT).json()
    assert got["usage"]["upstream"]["cost"] is None


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("cap", ["money_per_request", "money_per_day"])
def test_before_the_first_token_it_is_a_402(upstream: ModelServer, cap: str, stream: bool) -> None:
    before = len(upstream.requests)
    with service(upstream.base_url, **{cap: 1e-9}) as running:
        got = running.ask(stream=stream)
        with (
            openai.OpenAI(base_url=f"{running.address}/v1", api_key="none") as client,
            pytest.raises(openai.APIStatusError) as caught,
        ):
            client.completions.create(**body())
        assert (caught.value.status_code, running.refusals) == (402, 2)
    error = got.json()["error"]
    assert (got.status_code, error["code"], error["type"]) == (
        402,
        "budget_exceeded",
        "insufficient_quota",
    )
    assert f"limits.{cap}" in error["message"]
    assert len(upstream.requests) == before


@pytest.mark.parametrize("stream", [False, True])
@pytest.mark.parametrize("trace", [False, True])
@pytest.mark.parametrize("cap", [{"money_per_request": 1e-4}, {"calls_per_request": 3}])
def test_later_the_answer_ends_and_says_why(
    upstream: ModelServer, cap: dict[str, float], trace: bool, stream: bool
) -> None:
    with service(upstream.base_url, **cap) as running:
        got = running.ask(
            max_tokens=64, stream=stream, steering={"trace": trace, "lookahead": 1}, n=2
        )
        assert got.status_code == 200
        assert (
            running.day.out
            == running.metered
            <= nanos(1e-4) * (1 if "money_per_request" in cap else 99)
        )
        assert running.refusals == 2  # the second choice cannot even begin
    if stream:
        *blocks, done = got.text.strip().split("\n\n")
        assert done == "data: [DONE]"
        choices = [json.loads(b.removeprefix("data: "))["choices"][0] for b in blocks]
        ended = [choice for choice in choices if choice["finish_reason"]]
        text = "".join(choice["text"] for choice in choices)
    else:
        ended = got.json()["choices"]
        text = ended[0]["text"]
    assert [choice["finish_reason"] for choice in ended] == ["length", "length"]
    assert [choice["steering"]["finish"] for choice in ended] == ["budget", "budget"]
    assert all(("alpha" in choice["steering"]) == trace for choice in ended)
    assert text


@pytest.mark.parametrize("lookahead", [8, "stream"])
@pytest.mark.parametrize("cap", ["money_per_request", "money_per_day"])
def test_a_draft_is_as_short_as_what_is_left_of_the_money(
    upstream: ModelServer, cap: str, lookahead: int | str
) -> None:
    """Paid for: the prompt and five tokens, of eight; then nothing, not even one more call."""
    steering = {"alpha": 0, "lookahead": lookahead}
    with service(upstream.base_url) as running:
        running.ask(steering=steering)
        prompt = len(upstream.requests[-1]["prompt"])
    before = len(upstream.requests)
    with service(upstream.base_url, **{cap: (prompt * 1_000 + 5 * 4_000) / 1e9}) as running:
        got = running.ask(steering=steering).json()
        (choice,), spent = got["choices"], got["usage"]["upstream"]
        assert running.day.out == running.metered == round(spent["cost"] * 1e9)
        assert running.refusals == 1
    assert [asked["max_tokens"] for asked in upstream.requests[before:]] == [5]
    assert (spent["calls"], spent["completion_tokens"]) == (1, 5)
    assert (choice["finish_reason"], choice["steering"]["finish"]) == ("length", "budget")
    assert got["usage"]["completion_tokens"] == 5


def test_the_python_client_tells_cost_and_budget(upstream: ModelServer) -> None:
    with service(upstream.base_url, calls_per_request=3) as running:
        with Client(running.address) as client:
            fields = {"model": "tiny", "prompt": PROMPT, "temperature": 0, "lookahead": 1}
            short = client.complete(max_tokens=2, **fields)
            long = client.complete(max_tokens=9, **fields)
            spent = [answer.usage.cost for answer in (short, long)]
        assert round(sum(spent) * 1e9) == running.day.out > 0
    assert [answer.finish for answer in (short, long)] == [None, "budget"]
    assert [answer.finish_reason for answer in (short, long)] == ["length", "length"]
    assert not short.usage.estimated


def test_a_hang_up_during_a_call_is_the_last_thing_paid() -> None:
    with scripted(Reply(silent=True)) as script, service(script.base_url) as running:
        with running.asking(n=3):
            until(lambda: script.calls == 1)
        until(lambda: running.metered > 0)
        time.sleep(0.1)
        assert script.calls == 1
        assert running.day.out == running.metered  # as reserved: it may have been worked on


def test_a_hang_up_during_a_stream_closes_the_upstreams(upstream: ModelServer) -> None:
    with service(upstream.base_url) as running:
        idle = running.ask(max_tokens=1).status_code
        upstream.hold = 2
        upstream.cut.clear()
        before = len(upstream.requests)
        try:
            fields = {"max_tokens": 40, "steering": {"lookahead": "stream"}}
            with running.asking(stream=True, **fields) as client:
                assert client.recv(1)  # the upstream's stream has begun
            assert upstream.cut.wait(WAIT)
        finally:
            upstream.hold = None
        until(lambda: running.day.out == running.metered)
        time.sleep(0.1)
        assert (idle, len(upstream.requests)) == (200, before + 1)


@pytest.mark.reliability("C4")
def test_hang_ups_at_any_time_leave_nothing_behind(
    upstream: ModelServer, measured: Measured
) -> None:
    """Whole answers and streams, during calls and between choices."""
    luck, hang_ups = random.Random(7), count(1000)
    with service(upstream.base_url) as running:
        running.ask(max_tokens=1)
        until(lambda: running.slots == 0)
        idle = running.tasks
        late = left = 0
        for number in range(hang_ups):
            lookahead = luck.choice([1, 2, "stream"])
            fields = {"stream": number % 2 == 0, "n": 4, "steering": {"lookahead": lookahead}}
            requests, partings = len(running.loops), len(running.partings)
            with running.asking(max_tokens=6, prompt=f"{PROMPT} {number}", **fields) as client:
                if luck.random() < 0.5:
                    client.recv(1)
                time.sleep(luck.random() * 0.03)
            until(lambda n=requests: len(running.loops) > n and running.tasks <= idle)
            if running.partings[partings:]:
                left += 1
                late += running.day.takes - running.partings[partings]
        assert left > hang_ups / 2
        assert late == 0
        assert running.day.out == running.metered > 0
        until(lambda: running.slots == 0)
    seen = f"{left} seen while at work, 0 calls begun after that, nothing left behind"
    measured(f"{hang_ups:,} hang-ups", seen)
