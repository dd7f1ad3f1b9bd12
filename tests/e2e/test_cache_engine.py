"""The cache in front of the demo's own engine: nothing but time changes."""

import contextlib
from collections.abc import Iterator
from typing import Any

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.demo.almanac import world
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import STEERED, WEIGHTS, settings_for
from adapter.service.app import create_app
from adapter.settings import Settings
from tests.conftest import Measured
from tests.support.counts import count
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.sockets import serving

pytestmark = [pytest.mark.engine, pytest.mark.redis, needs_redis]

NOISE = 2e-3
"""Nats between the two best, within which an engine's rounding may decide."""

Told = tuple[str, list[dict[str, Any]]]


@contextlib.contextmanager
def service(engine: Engine, url: str) -> Iterator[httpx.Client]:
    """A replica of its own, with nothing in its memory."""
    given = settings_for(engine.base_url)
    models = {STEERED: given["models"][STEERED]}
    cache = {"url": url, "secret_env": None if url == "none" else "CACHE_SECRET"}
    settings = Settings.model_validate({"models": models, "cache": cache})
    app = create_app(Adapter.from_settings(settings), settings)
    with serving(app) as address, httpx.Client(base_url=address, timeout=60) as client:
        yield client


def asked(many: int) -> list[dict[str, Any]]:
    """Questions of the almanac, greedily and with seeds."""
    almanac = world()
    questions = [*almanac.questions_new(), *almanac.questions_old()]
    bodies = []
    for number in range(many):
        seed = number // len(questions)
        drawn = {"temperature": 0} if number % 2 == 0 else {"temperature": 1, "seed": seed}
        prompt = f"{questions[number % len(questions)].prompt}{' ' * seed}"
        steering = {"trace": "candidates", "lookahead": 4}
        common = {"model": STEERED, "prompt": prompt, "max_tokens": 6, "logprobs": 5}
        bodies.append(common | drawn | {"steering": steering})
    return bodies


def answer(client: httpx.Client, body: dict[str, Any]) -> Told:
    got = client.post("/v1/completions", json=body)
    assert got.status_code == 200, got.text
    choice = got.json()["choices"][0]
    return choice["text"], choice["steering"]["steps"]


def explained(one: Told, other: Told, body: dict[str, Any]) -> bool:
    """Whether a difference lies where noise decides: the engine's, or the draw's own."""
    for mine, theirs in zip(one[1], other[1], strict=False):
        if mine["token"] != theirs["token"]:
            scores = {shown["token"]: shown["logprob"] for shown in mine["candidates"]}
            best, second = scores.get(mine["token"]), scores.get(theirs["token"])
            near = None not in (best, second) and best - second <= NOISE
            return near or body["temperature"] != 0
    return False


@pytest.mark.reliability("A7")
def test_off_cold_warm_and_lost_midway(monkeypatch: pytest.MonkeyPatch, measured: Measured) -> None:
    monkeypatch.setenv("CACHE_SECRET", "a secret")
    bodies = asked(count(1000, 50))
    options = EngineOptions(alias="hosted", slots=1, threads=1)
    with redis_server() as server, Engine(WEIGHTS / "hosted.gguf", options) as engine:
        with service(engine, "none") as client:
            off = [answer(client, body) for body in bodies]
        with service(engine, server.url()) as client:
            cold = [answer(client, body) for body in bodies]
            warm = [answer(client, body) for body in bodies]
        midway = frozen(engine, server, bodies)
    different = sum(one[0] != other[0] for one, other in zip(off, cold, strict=True))
    lost = sum(one[0] != other[0] for one, other in zip(cold, midway, strict=True))
    assert [text for text, _ in warm] == [text for text, _ in cold]
    for others in (cold, midway):
        for one, other, body in zip(off, others, bodies, strict=True):
            assert one[0] == other[0] or explained(one, other, body)
    most = max(1, len(bodies) // 100)
    assert max(different, lost) <= most
    assert len({text for text, _ in off}) > len(bodies) / 10
    seen = (
        f"warm as cold to the byte; off and cold differ in {different}, cold and frozen in {lost}"
    )
    measured(f"{len(bodies):,} prompts, four times", seen)


def frozen(engine: Engine, server: RedisServer, bodies: list[dict[str, Any]]) -> list[Told]:
    """A fresh replica that reads what is in Redis until Redis stands still."""
    with service(engine, server.url()) as client:
        half = len(bodies) // 2
        read = [answer(client, body) for body in bodies[:half]]
        server.freeze()
        read += [answer(client, body) for body in bodies[half:]]
        server.thaw()
    return read
