"""What the kit runs against: servers of our own, and with --upstream any other.

    python -m pytest tests/upstream --upstream URL --upstream-model NAME \\
        --upstream-tokenizer hf:PATH [--upstream-key-env VARIABLE] [--upstream-chat]
"""

import asyncio
import os
from collections.abc import AsyncIterator, Iterator
from dataclasses import dataclass

import pytest

from adapter.budget import Budget
from adapter.demo.engine import Engine, EngineOptions
from adapter.prefix import Prefix
from adapter.request import Chat, Message
from adapter.upstream import Endpoint, Upstream
from adapter.upstream.dialects import connect_known
from adapter.upstream.probe import MOST_CALLS, probe
from adapter.upstream.records import Record
from tests.support.chat_server import VLLM, Habits, chat_server
from tests.support.model_server import model_server
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Vocabulary

CHATS = {"chat": VLLM, "chat that goes on from nothing": Habits()}
OWN = [pytest.param("llama.cpp", marks=pytest.mark.engine), "model server", *CHATS]


def pytest_addoption(parser: pytest.Parser) -> None:
    group = parser.getgroup("upstream", "the conformance kit against a server of yours")
    group.addoption("--upstream", help="its base URL, with the /v1")
    group.addoption("--upstream-model", default="", help="may be left out where there is only one")
    group.addoption("--upstream-tokenizer", help="hf:PATH, tiktoken:NAME, …: the model's own")
    group.addoption("--upstream-key-env", help="the variable that holds the key")
    group.addoption("--upstream-chat", action="store_true", help="its chat API alone")


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    """A given server takes the place of our own."""
    if "served" in metafunc.fixturenames:
        given = _option(metafunc.config, "--upstream")
        servers = ["the given server"] if given else OWN
        metafunc.parametrize("served", servers, indirect=True, scope="session")


def _option(config: pytest.Config, name: str) -> str | None:
    """None too where pytest was not started in this folder, and so does not know the option."""
    return config.getoption(name, default=None)


@pytest.fixture(autouse=True, scope="session")
def _no_network(request: pytest.FixtureRequest) -> None:
    """Loopback only, as everywhere, unless a server is given."""
    if not _option(request.config, "--upstream"):
        request.getfixturevalue("_no_network")


@dataclass(frozen=True)
class Served:
    """A server with what a probe of it found."""

    endpoint: Endpoint
    vocabulary: Vocabulary
    record: Record

    @property
    def close(self) -> float:
        """Nats between two answers about the same position: engines vary with what is cached."""
        return max(2e-3, 3 * (self.record.value("repeatable") or 0.0))

    def prefix(self, text: str) -> Prefix:
        """A text as it is sent: as ids, as text, or as a chat's message."""
        if self.record.api == "chat":
            return Prefix.of(Chat((Message("user", text),)))
        if self.record.value("continues") == "text":
            return Prefix.of(text)
        return Prefix.of([*self.vocabulary.start, *self.vocabulary.encode(text.encode())])

    def connect(self, k: int) -> Upstream:
        return connect_known(self.endpoint, self.record, vocabulary=self.vocabulary, top_logprobs=k)


@pytest.fixture(scope="session")
def served(request: pytest.FixtureRequest) -> Iterator[Served]:
    config, spec = request.config, f"hf:{tiny().upstream}"
    if request.param == "llama.cpp":
        with Engine(tiny().gguf, EngineOptions(context=256, slots=2, threads=1)) as engine:
            yield _probed(Endpoint(engine.base_url, ""), spec)
    elif request.param == "model server":
        with model_server(tiny().upstream) as server:
            yield _probed(Endpoint(server.base_url, ""), spec)
    elif request.param in CHATS:
        with chat_server(tiny().upstream, CHATS[request.param]) as chat:
            yield _probed(Endpoint(chat.base_url, ""), spec)
    else:
        given = {n: _option(config, f"--upstream-{n}") for n in ("model", "tokenizer", "key-env")}
        if not given["tokenizer"]:
            raise pytest.UsageError("--upstream needs --upstream-tokenizer")
        key = os.environ[given["key-env"]] if given["key-env"] else None
        url = (_option(config, "--upstream") or "").rstrip("/")
        chat_only = bool(_option(config, "--upstream-chat"))
        yield _probed(Endpoint(url, given["model"] or "", key), given["tokenizer"], chat_only)


def _probed(endpoint: Endpoint, spec: str, chat_only: bool = False) -> Served:
    vocabulary = load_vocabulary(spec)
    record = asyncio.run(probe(endpoint, Budget(MOST_CALLS), vocabulary, chat_only))
    found = Endpoint(endpoint.base_url, record.model, endpoint.api_key)
    return Served(found, vocabulary, record)


@pytest.fixture
async def upstream(served: Served) -> AsyncIterator[Upstream]:
    """The server in its dialect, asked for up to 20 candidates."""
    upstream = served.connect(20)
    yield upstream
    await upstream.close()
