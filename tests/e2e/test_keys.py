"""Keys over HTTP: what each may spend in a day, and whose cache entries it meets."""

from collections.abc import Iterator

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.keys import KEY, OTHER, bearer, key_settings
from tests.support.model_server import ModelServer, model_server
from tests.support.redis_server import RedisServer, needs_redis, redis_server
from tests.support.sockets import serving
from tests.support.tiny import tiny

BODY = {"model": "tiny", "prompt": "The harbour master kept a ledger", "temperature": 0}
UPSTREAM = {"price": {"input": 1.0, "output": 4.0}}
SECRET = "TEST_KEYS_SECRET"


@pytest.fixture(scope="module")
def upstream() -> Iterator[ModelServer]:
    with model_server(tiny().upstream) as server:
        yield server


def ask(address: str, key: str, **more) -> httpx.Response:
    return httpx.post(
        f"{address}/v1/completions",
        json=BODY | {"max_tokens": 4} | more,
        headers=bearer(key),
        timeout=60,
    )


def test_a_key_spends_its_own_money_and_no_more(upstream: ModelServer) -> None:
    keys = [
        key_settings("frugal", KEY, money_per_day=3e-5).model_dump(),
        key_settings("rich", OTHER, money_per_day=1.0).model_dump(),
    ]
    settings = settings_for(upstream.base_url, upstream=UPSTREAM, keys=keys, cache={"url": "none"})
    adapter = Adapter.from_settings(settings)
    with serving(create_app(adapter, settings)) as address:
        spent = 0.0
        for _ in range(50):
            response = ask(address, KEY, max_tokens=1)
            if response.status_code != 200:
                break
            spent += response.json()["usage"]["upstream"]["cost"]
        error = response.json()["error"]
        assert (response.status_code, error["code"]) == (402, "budget_exceeded")
        assert "keys.money_per_day" in error["message"]
        assert "frugal" not in error["message"]
        assert 0 < spent <= 3e-5
        assert ask(address, OTHER).status_code == 200
        assert ask(address, KEY).status_code == 402
        refused = adapter.metrics.registry.get_sample_value(
            "adapter_budget_refusals_total", {"model": "tiny", "cap": "keys.money_per_day"}
        )
        assert refused == 2


@pytest.mark.redis
@needs_redis
def test_replicas_share_what_a_key_may_spend(upstream: ModelServer, monkeypatch) -> None:
    monkeypatch.setenv(SECRET, "s")
    cap = 5e-4
    keys = [key_settings("frugal", KEY, money_per_day=cap).model_dump()]

    def replica(redis: RedisServer) -> Adapter:
        cache = {"url": redis.url(), "secret_env": SECRET}
        self = settings_for(upstream.base_url, upstream=UPSTREAM, keys=keys, cache=cache)
        return Adapter.from_settings(self), self

    with redis_server() as redis:
        (first, settings), (second, _) = replica(redis), replica(redis)
        with (
            serving(create_app(first, settings)) as one,
            serving(create_app(second, settings)) as two,
        ):
            spent, refused = 0.0, set()
            for number in range(200):
                address = (one, two)[number % 2]
                response = ask(address, KEY, max_tokens=1, prompt=f"Ship {number} of the harbour")
                if response.status_code == 402:
                    refused.add(address)
                    continue
                spent += response.json()["usage"]["upstream"]["cost"]
    assert refused == {one, two}
    assert 0.8 * cap < spent <= cap


@pytest.mark.parametrize(
    ("one", "two", "shared"), [(None, None, False), ("t", "t", True), ("t", "u", False)]
)
def test_tenants_do_not_meet_in_the_cache(upstream: ModelServer, one, two, shared) -> None:
    named = ({} if tenant is None else {"tenant": tenant} for tenant in (one, two))
    keys = [
        key_settings(name, key, **more).model_dump()
        for name, key, more in zip("ab", (KEY, OTHER), named, strict=True)
    ]
    settings = settings_for(upstream.base_url, keys=keys, lookahead={"n": 4})
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        found = [ask(address, key).headers["x-cache"] for key in (KEY, OTHER, KEY, OTHER)]
    assert found == ["miss", "hit" if shared else "miss", "hit", "hit"]
