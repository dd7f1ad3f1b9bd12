"""The whole service with its cache: nothing but time changes, whatever happens to Redis."""

import asyncio
import contextlib
import json
import re
import socket
import time
from collections import Counter
from collections.abc import Callable, Iterator

import httpx
import pytest
import redis

from adapter.adapter import Adapter
from adapter.service.app import create_app
from cache.breaker import Breaker
from tests.e2e.prompts import PROMPTS
from tests.support.configured import settings_for
from tests.support.counts import count
from tests.support.model_server import model_server
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis, redis_server
from tests.support.sockets import free_port, serving
from tests.support.tcp_proxy import cut_after, delayed, instead, proxy, sliced, untouched
from tests.support.tiny import tiny

pytestmark = [pytest.mark.redis, needs_redis]

SECRET, KEY = "5Y2-qzvbxk-7W1jmp", "8K4-hgwtfr-2N9dlc"
ASKED = [(prompt, seed) for prompt in PROMPTS[:4] for seed in (None, 7)]
TOKENS = 8
HANG = 60.0
"""Seconds for a dozen answers: with redis-py's defaults a single lost read takes five."""


@pytest.fixture(autouse=True)
def secrets(monkeypatch):
    monkeypatch.setenv("CACHE_SECRET", SECRET)
    monkeypatch.setenv("OTHER_SECRET", "another one")
    monkeypatch.setenv("UPSTREAM_KEY", KEY)


@pytest.fixture(autouse=True)
def log(caplog):
    """Only what the cache says: the rest is as without one."""
    caplog.set_level("INFO", "cache")
    return lambda: [r.getMessage() for r in caplog.records if r.name.startswith("cache")]


@pytest.fixture(scope="module")
def server():
    with model_server(tiny().upstream, key=KEY) as server:
        yield server


@pytest.fixture(scope="module")
def steady():
    with redis_server() as server:
        yield server


@pytest.fixture
def mortal():
    with redis_server() as server:
        yield server


@contextlib.contextmanager
def service(server, url: str, **more) -> Iterator[str]:
    """One replica; `ADAPTER` in front of its address is what tests look into."""
    cache = {"url": url, "secret_env": more.pop("secret", "CACHE_SECRET")}
    upstream = {"api_key_env": "UPSTREAM_KEY"} | more.pop("upstream", {})
    settings = settings_for(
        more.pop("base_url", server.base_url), cache=cache, upstream=upstream, **more
    )
    adapter = Adapter.from_settings(settings)
    with serving(create_app(adapter, settings)) as address:
        RUNNING[address] = adapter
        yield address


RUNNING: dict[str, Adapter] = {}


def body(prompt: str, seed: int | None, **more) -> dict:
    """Greedy without a seed; drafts of three tokens, so that texts leave them on the way."""
    drawn = {"temperature": 0} if seed is None else {"temperature": 1, "seed": seed}
    asked = {"model": "tiny", "prompt": prompt, "max_tokens": TOKENS, "logprobs": 0, **drawn}
    return asked | {"steering": {"lookahead": 3}} | more


def ask(address: str, prompt: str, seed: int | None, headers=None, **more) -> httpx.Response:
    answer = httpx.post(
        f"{address}/v1/completions", json=body(prompt, seed, **more), headers=headers, timeout=HANG
    )
    assert answer.status_code == 200, answer.text
    return answer


def told(answer: httpx.Response) -> tuple:
    choice = answer.json()["choices"][0]
    return choice["text"], choice["finish_reason"], tuple(choice["logprobs"]["tokens"])


def calls(answer: httpx.Response) -> int:
    return answer.json()["usage"]["upstream"]["calls"]


def all_told(address: str) -> list[tuple]:
    return [told(ask(address, *asked)) for asked in ASKED]


@pytest.fixture(scope="module")
def expected(server):
    """Every answer without a cache."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("CACHE_SECRET", SECRET)
        patch.setenv("UPSTREAM_KEY", KEY)
        with service(server, "none") as address:
            return all_told(address)


def test_the_answers_are_worth_comparing(expected):
    assert len(set(expected)) > len(expected) // 2
    assert max(len(tokens) for _, _, tokens in expected) == TOKENS


@pytest.mark.parametrize("kind", ["memory", "sqlite", "redis"])
def test_cold_or_warm_the_answers_are_the_same(server, steady, expected, kind, tmp_path, log):
    urls = {"memory": "memory://", "sqlite": f"sqlite:///{tmp_path}/c.db", "redis": steady.url()}
    with service(server, urls[kind], secret="OTHER_SECRET") as address:
        assert all_told(address) == expected
        before = len(server.requests)
        again = [ask(address, *asked) for asked in ASKED]
        assert [told(answer) for answer in again] == expected
        assert {answer.headers["x-cache"] for answer in again} == {"hit"}
        assert sum(calls(answer) for answer in again) == 0
    assert len(server.requests) == before
    if kind == "sqlite":
        with service(server, urls[kind], secret="OTHER_SECRET") as address:
            assert all_told(address) == expected
        assert len(server.requests) == before
    assert log() == []


def test_replicas_share_and_others_do_not(server, steady, expected):
    url, prompt = steady.url(), "Replicas share"
    with service(server, url) as one, service(server, url) as two:
        cold, warm = ask(one, prompt, 1), ask(two, prompt, 1)
        other = ask(two, prompt, 2, steering={"alpha": 0.5, "lookahead": 3})
    assert (cold.headers["x-cache"], warm.headers["x-cache"]) == ("miss", "hit")
    assert (told(warm), calls(warm)) == (told(cold), 0)
    assert other.headers["x-cache"] in ("hit", "partial")
    strangers = [
        {"secret": "OTHER_SECRET"},
        {"base_url": server.base_url.replace("127.0.0.1", "localhost")},
        {"top_logprobs": 19},
    ]
    for changed in strangers:
        with service(server, url, **changed) as address:
            assert ask(address, prompt, 1).headers["x-cache"] == "miss", changed


def test_cache_control(server, steady):
    with service(server, steady.url()) as address:

        def said(control: str | None, **more) -> tuple[str, bool]:
            headers = {"cache-control": control} if control else None
            answer = ask(address, "Cache control", None, headers, **more)
            return answer.headers["x-cache"], calls(answer) > 0

        fresh, kept = ("miss", True), ("hit", False)
        assert said("no-store") == said("no-store", n=2) == fresh
        assert said("no-cache", n=2) == fresh
        assert said(None) == said("max-age=0, immutable") == kept
        assert said("no-cache") == said("No-Store") == fresh
        assert said(None, max_tokens=TOKENS + 4)[0] == "partial"
        assert said(None, max_tokens=TOKENS + 4) == kept
        with httpx.stream(
            "POST",
            f"{address}/v1/chat/completions",
            json={"model": "tiny", "messages": [], "stream": True},
            headers={"cache-control": "no-store"},
        ) as refused:
            assert refused.status_code == 400


@pytest.mark.parametrize("lookahead", [1, 5, "auto", "stream"])
def test_x_cache_with_every_kind_of_draft(server, lookahead):
    with service(server, "memory://") as address:
        for stream in (False, True):
            asked = body("Drafts", None, steering={"lookahead": lookahead}, stream=stream)
            headers = {"cache-control": "no-cache"} if stream else None
            found = [
                httpx.post(f"{address}/v1/completions", json=asked, headers=h).headers["x-cache"]
                for h in (headers, None)
            ]
            assert found == ["miss", "hit"]


@pytest.mark.reliability("E4")
async def test_a_hundred_at_once_on_each_of_three_replicas(server, steady, measured):
    with contextlib.ExitStack() as stack:
        own = {"max_concurrency": 100}
        replicas = [
            stack.enter_context(service(server, steady.url(), service=own)) for _ in range(3)
        ]
        before = len(server.requests)
        async with httpx.AsyncClient(
            timeout=HANG, limits=httpx.Limits(max_connections=300)
        ) as all_:
            asked = [
                all_.post(f"{replicas[n % 3]}/v1/completions", json=body("All at once", None))
                for n in range(300)
            ]
            answers = await asyncio.gather(*asked)
    assert {answer.status_code for answer in answers} == {200}
    assert len({told(answer) for answer in answers}) == 1
    sent = Counter(json.dumps(request, sort_keys=True) for request in server.requests[before:])
    assert sent.total() == sum(calls(answer) for answer in answers)
    assert max(sent.values()) <= 3
    measured("300 requests to 3 replicas", f"at most {max(sent.values())} calls for a prefix")


@pytest.mark.parametrize(
    ("fault", "repair"),
    [(RedisServer.freeze, RedisServer.thaw), (RedisServer.kill, RedisServer.start)],
    ids=["frozen", "killed"],
)
def test_lost_in_the_middle_of_an_answer_and_found_again(
    server, mortal, expected, log, fault, repair
):
    with service(server, mortal.url()) as address:
        asked = body(*ASKED[0], stream=True, steering={"lookahead": 1})
        text, begun = "", time.monotonic()
        with httpx.stream("POST", f"{address}/v1/completions", json=asked, timeout=HANG) as answer:
            for line in answer.iter_lines():
                if line.startswith("data: {"):
                    text += json.loads(line[6:])["choices"][0]["text"]
                    if text:
                        fault(mortal)
        assert text == expected[0][0]
        assert all_told(address) == expected
        assert httpx.get(f"{address}/readyz").json() == {"status": "ready"}
        assert time.monotonic() - begun < HANG
        lost = log()
        assert len(lost) <= 1
        failures = RUNNING[address].metrics.registry.get_sample_value(
            "adapter_cache_failures_total"
        )
        assert failures >= 1
        repair(mortal)
        operator = redis.Redis(port=mortal.port, **account(OPERATOR))
        until_stored(address, operator)
        operator.close()
        assert len(log()) <= 2


def account(name: str) -> dict[str, str]:
    username, password = name.split(":")
    return {"username": username, "password": password}


def until_stored(address: str, operator: redis.Redis) -> None:
    """New prompts, until one of them is stored again."""
    before = operator.dbsize()
    for n in range(300):
        ask(address, f"new {n}", None, max_tokens=1)
        if operator.dbsize() > before:
            return
        time.sleep(0.05)
    raise AssertionError("the cache did not come back")


SPOILS = {
    "two seconds late": delayed(lambda: 2.0),
    "a byte a millisecond": sliced(0.001),
    "cut": cut_after(20),
    "loading": instead(b"-LOADING Redis is loading the dataset in memory\r\n"),
    "noise": instead(b"\x00\xff\x13noise\r\n" * 9),
}


@pytest.mark.parametrize("spoil", SPOILS)
async def test_whatever_the_network_does(server, steady, expected, log, spoil):
    async with proxy(steady.port) as spoiled:
        spoiled.spoil = SPOILS[spoil]
        url = f"redis://{ACCOUNT}@127.0.0.1:{spoiled.port}"
        with service(server, url, secret="OTHER_SECRET") as address:
            begun = time.monotonic()
            assert await asyncio.to_thread(all_told, address) == expected
            assert time.monotonic() - begun < HANG
    assert spoiled.connections > 0
    assert len(log()) <= 2


@pytest.mark.parametrize(
    "url",
    [
        lambda s: s.url("adapter:wrong-password"),
        lambda s: f"redis://{ACCOUNT}@127.0.0.1:{free_port()}",
    ],
    ids=["wrong password", "nobody there"],
)
def test_a_redis_that_cannot_be_used_from_the_start(
    server, steady, expected, log, url: Callable[[RedisServer], str]
):
    with service(server, url(steady)) as address:
        assert all_told(address) == expected
        assert httpx.get(f"{address}/readyz").status_code == 200
        assert httpx.get(f"{address}/healthz").json() == {"status": "ok"}
    assert len(log()) <= 2
    assert not any(part in line for line in log() for part in (*ACCOUNT.split(":"), "wrong-pass"))


@pytest.mark.parametrize("setting", ["maxmemory 1", "replicaof 127.0.0.1 9"])
def test_a_redis_that_takes_nothing(server, expected, log, setting):
    with redis_server(setting) as full, service(server, full.url()) as address:
        assert all_told(address) == expected
        assert all_told(address) == expected
    assert len(log()) <= 2


PROMPT = "3F6 zorvple quinxat 9B7"


def pieces(*words: str) -> set[bytes]:
    """Every eight characters of them."""
    return {word[i : i + 8].encode() for word in words for i in range(len(word) - 7)}


def watched(server: RedisServer) -> socket.socket:
    """A connection on which Redis repeats all that it is asked."""
    name, password = OPERATOR.split(":")
    monitor = socket.create_connection(("127.0.0.1", server.port), 5)
    monitor.sendall(f"AUTH {name} {password}\r\nMONITOR\r\n".encode())
    while not monitor.recv(4096).endswith(b"+OK\r\n"):
        pass
    monitor.settimeout(0.5)
    return monitor


@pytest.mark.reliability("F3")
@pytest.mark.reliability("F4")
def test_nothing_private_reaches_redis_or_the_log(server, mortal, caplog):
    caplog.set_level("DEBUG")
    with contextlib.closing(watched(mortal)) as monitor, service(server, mortal.url()) as address:
        for prompt in (PROMPT, [5, 6, 7]):
            for _ in range(2):
                ask(address, prompt, None)
        ask(address, PROMPT, None, {"cache-control": "no-store"})
        heard = b""
        with contextlib.suppress(TimeoutError):
            while True:
                heard += monitor.recv(2**20)
        mortal.kill()
        ask(address, PROMPT + " again", None)
        repr_of_it = repr(RUNNING[address]) + repr(settings_for(server.base_url))
    commands = set(re.findall(rb'\] "(\w+)"', heard))
    assert {b"GET", b"SET"} <= commands <= {b"GET", b"SET", b"AUTH", b"PING"}
    written = re.findall(rb'"SET" "([^"]*)" ".*" "PX" "(\d+)"', heard)
    assert len(written) > 2
    assert all(re.fullmatch(rb"adapter:cache:[0-9a-f]{64}", key) for key, _ in written)
    assert {life for _, life in written} == {str(7 * 86400 * 1000).encode()}
    private = pieces(PROMPT, SECRET, KEY)
    said = caplog.text + repr_of_it
    for piece in private:
        assert piece not in heard
        assert piece.decode() not in said
    assert not any(piece.decode() in said for piece in pieces(ACCOUNT.split(":")[1]))


def test_metrics_of_the_cache(server):
    with service(server, "memory://") as address:
        for more in ({}, {}, {"max_tokens": TOKENS + 2}, {"n": 2}):
            ask(address, "Metrics", None, **more)
        registry = RUNNING[address].metrics.registry
        counts = {
            result: registry.get_sample_value(
                "adapter_cache_results_total", {"model": "tiny", "result": result}
            )
            for result in ("hit", "partial", "miss")
        }
        assert counts == {"hit": 2.0, "partial": 1.0, "miss": 1.0}
        assert registry.get_sample_value("adapter_cache_failures_total") == 0


LASTING = {"two seconds late", "loading", "noise", "frozen", "killed", "refused", "wrong password"}
"""Faults in which no probe can succeed: one change of state, however busy the machine."""

FAULTS = ["none", *SPOILS, "frozen", "killed", "refused", "wrong password", "full", "read-only"]


def harm(server: RedisServer, fault: str) -> None:
    """Faults of the server itself; the others are the proxy's."""
    operator = redis.Redis(port=server.port, **account(OPERATOR))
    if fault == "frozen":
        server.freeze()
    elif fault == "killed":
        server.kill()
    elif fault == "full":
        operator.config_set("maxmemory", 1)
    elif fault == "read-only":
        operator.replicaof("127.0.0.1", "9")
    operator.close()


@pytest.fixture
def openings(monkeypatch):
    """Why the breaker opened, each time, seen beside the log."""
    seen: list[str] = []
    opens = Breaker._open

    def noted(breaker: Breaker, reason: str) -> None:
        seen.append(reason)
        opens(breaker, reason)

    monkeypatch.setattr(Breaker, "_open", noted)
    return seen


LINE = re.compile(
    r"cache: Redis at 127\.0\.0\.1:\d+ (?:(answers again)|(fails|refuses commands) \((.+?)\).*)"
)


def changes_told(lines: list[str], openings: int, seconds: float, *, lasting: bool) -> str:
    """What the log says, once it is clear that each line tells of a change of state of its own.

    Three failures in a row are one: Redis is lost. Then it can come back. Refusals are told of once
    a minute. A busy machine that reads nothing in time loses Redis as well as any fault does.
    """
    told = [match.groups() for line in lines if (match := LINE.fullmatch(line))]
    assert len(told) == len(lines), lines
    refused = [reason for _, what, reason in told if what == "refuses commands"]
    turns = ["back" if back else "lost" for back, what, _ in told if what != "refuses commands"]
    assert len(refused) <= 1 + seconds // 60
    assert turns == [("lost", "back")[n % 2] for n in range(len(turns))]
    assert 3 * turns.count("lost") <= openings
    assert not lasting or turns in ([], ["lost"])
    said = Counter(back or f"{what} ({reason})" for back, what, reason in told)
    return "log: " + (", ".join(f"{line} × {n}" for line, n in said.items()) or "nothing")


@pytest.mark.reliability("B1")
@pytest.mark.parametrize("fault", FAULTS)
async def test_of_a_thousand_requests_none_fails(server, mortal, log, fault, openings, measured):
    """New prompts, ten at a time, with two upstream calls each."""
    begun = time.monotonic()
    async with proxy(mortal.port) as between:
        between.spoil = SPOILS.get(fault, untouched)
        user = "adapter:wrong" if fault == "wrong password" else ACCOUNT
        port = free_port() if fault == "refused" else between.port
        with service(server, f"redis://{user}@127.0.0.1:{port}") as address:
            ask(address, "To begin with", None)
            harm(mortal, fault)
            async with httpx.AsyncClient(timeout=HANG) as client:
                queue, costs = iter(range(count(1000))), []

                async def worker() -> None:
                    for n in queue:
                        more = {"max_tokens": 2, "steering": {"alpha": 0, "lookahead": 1}}
                        start = time.perf_counter()
                        asked = body(f"Request {n}", None, **more)
                        answer = await client.post(f"{address}/v1/completions", json=asked)
                        costs.append(1e3 * (time.perf_counter() - start))
                        assert answer.status_code == 200

                await asyncio.gather(*(worker() for _ in range(10)))
    costs.sort()
    assert len(costs) == count(1000)
    seconds = time.monotonic() - begun
    said = changes_told(log(), len(openings), seconds, lasting=fault in LASTING)
    middle, most = costs[len(costs) // 2], costs[len(costs) * 99 // 100]
    seen = f"0 failed, median {middle:.0f}, p99 {most:.0f} ms, {said}"
    measured(f"{fault}, {len(costs):,} requests", seen)
