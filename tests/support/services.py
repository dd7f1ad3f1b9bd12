"""A service on a real socket in front of a scripted adapter."""

import contextlib
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from adapter.service.app import create_app
from adapter.settings import LimitSettings, ModelSettings, PairSettings, Settings, UpstreamSettings
from tests.support.scripted_adapter import ScriptedAdapter
from tests.support.sockets import serving

Serve = Callable[[ScriptedAdapter], str]


@pytest.fixture(scope="session")
def settings() -> Settings:
    upstream = UpstreamSettings(
        base_url="http://127.0.0.1:9/v1", model="m", tokenizer="tiktoken:cl100k_base"
    )
    pair = PairSettings(experts={"e": str(Path("e"))}, antiexpert="a")
    models = {"m": ModelSettings(upstream=upstream, pair=pair)}
    return Settings(models=models, limits=LimitSettings(top_logprobs=5, max_tokens=100))


@pytest.fixture
def serve(settings: Settings) -> Iterator[Serve]:
    """Starts services that last until the end of the test; gives their address."""
    with contextlib.ExitStack() as stack:
        yield lambda adapter: stack.enter_context(serving(create_app(adapter, settings)))


@pytest.fixture(scope="module")
def hello(settings: Settings) -> Iterator[str]:
    """The address of a service that answers `Hi there` to everything."""
    with serving(create_app(ScriptedAdapter(), settings)) as address:
        yield address
