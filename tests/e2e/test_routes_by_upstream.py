"""Choices, echo and the tokenizer's routes, with keys, on every kind of upstream."""

import contextlib
import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import httpx
import pytest

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.chat_server import ChatServer, chat_server
from tests.support.configured import settings_for
from tests.support.keys import KEY, OTHER, bearer, key_settings
from tests.support.model_server import ModelServer, model_server
from tests.support.sockets import serving
from tests.support.tiny import tiny

Json = dict[str, Any]
PROMPT = "The harbour master kept"
ECHO = {"prompt": PROMPT, "echo": True, "max_tokens": 1, "logprobs": 1}
LABELS = {"max_tokens": 1, "steering": {"choices": ["A", "B"]}}
CHAT = {"messages": [{"role": "user", "content": "A or B?"}]}
EVERYTHING = {"top_logprobs": 10**6}
KINDS: dict[str, Json] = {
    "ids": EVERYTHING,
    "text": EVERYTHING | {"prefix": "text"},
    "unknown": EVERYTHING | {"tokenizer": "unknown", "prefix": "text"},
    "chat": {"api": "chat", "top_logprobs": 20},
    "chat unknown": {"api": "chat", "top_logprobs": 20, "tokenizer": "unknown"},
}
BY_KIND = pytest.mark.parametrize("kind", KINDS)


@pytest.fixture(scope="module")
def servers(tmp_path_factory) -> Iterator[dict[str, ModelServer | ChatServer | Path]]:
    template = tmp_path_factory.mktemp("templates") / "chat.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    with model_server(tiny().upstream) as plain, chat_server(tiny().upstream) as chat:
        yield {"plain": plain, "chat": chat, "template": template}


@dataclass
class Running:
    """A service with keys in front of one kind of upstream."""

    address: str
    upstream: ModelServer | ChatServer

    def ask(self, path: str, key: str | None = KEY, **body: Any) -> httpx.Response:
        headers = bearer(key) if key else {}
        asked = {"model": "tiny", **body}
        return httpx.post(f"{self.address}{path}", json=asked, headers=headers, timeout=60)

    @property
    def calls(self) -> int:
        return len(self.upstream.requests)


@contextlib.contextmanager
def running(servers, kind: str, *keys: Json, **more: Any) -> Iterator[Running]:
    upstream = servers["chat" if "chat" in kind else "plain"]
    known = [key_settings("one", KEY).model_dump(), key_settings("two", OTHER).model_dump()]
    sections = {"keys": list(keys) or known, "cache": {"url": "none"}} | more
    priced = {**KINDS[kind], "price": {"input": 1.0, "output": 1.0}}
    if "chat" in kind:  # the tiny pair has no template of its own
        sections["templates"] = {"expert": str(servers["template"])}
    settings = settings_for(upstream.base_url, upstream=priced, **sections)
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        yield Running(address, upstream)


@BY_KIND
def test_labels_take_one_call_on_every_upstream(servers, kind) -> None:
    """A chat API that cannot go on shows them at its first position, as all others do."""
    with running(servers, kind) as service:
        if "chat" in kind:
            own, before = _favourites(service), service.calls
            found = service.ask("/v1/chat/completions", **CHAT, steering={"choices": own})
            told = found.json()["choices"][0]
            text = told["message"]["content"]
        else:
            own, before = ["A", "B"], service.calls
            found = service.ask("/v1/completions", prompt=PROMPT, **LABELS)
            told = found.json()["choices"][0]
            text = told["text"]
        assert service.calls - before == 1
    labels = told["steering"]["choices"]
    assert [one["label"] for one in labels] == own
    assert all(one["shown"] for one in labels)
    assert sum(math.exp(one["logprob"]) for one in labels) == pytest.approx(1.0)
    assert text == max(labels, key=lambda one: one["logprob"])["label"]


def _favourites(service: Running) -> list[str]:
    """Two labels among the few that a chat API shows."""
    body = {**CHAT, "max_tokens": 1, "temperature": 0, "logprobs": True, "top_logprobs": 20}
    shown = service.ask("/v1/chat/completions", **body, steering={"alpha": 0}).json()
    entries = shown["choices"][0]["logprobs"]["content"][0]["top_logprobs"]
    whole = (e["token"] for e in entries if list(e["token"].encode()) == e["bytes"])
    return [token for token in whole if not token.startswith(" ")][:2]


@BY_KIND
def test_a_text_is_scored_or_it_is_said_why_not(servers, kind) -> None:
    with running(servers, kind) as service:
        before = service.calls
        answer = service.ask("/v1/completions", **ECHO, steering={"trace": True})
        calls = service.calls - before
    if kind == "ids":
        choice = answer.json()["choices"][0]
        echoed = choice["steering"]["echo"]
        assert choice["text"].startswith(PROMPT)
        assert [step["logprob"] for step in echoed] == choice["logprobs"]["token_logprobs"][1:-1]
        assert all(low <= s["logprob"] <= high for s in echoed for low, high in [s["bounds"]])
        assert calls == 1
    else:
        error = answer.json()["error"]
        assert (answer.status_code, error["param"], calls) == (400, "echo", 0)
        assert "forced_scoring" not in error["message"] or kind != "chat"


@BY_KIND
def test_the_tokenizer_answers_or_says_that_it_is_unknown(servers, kind) -> None:
    with running(servers, kind) as service:
        answers = [
            service.ask("/tokenize", prompt=PROMPT),
            service.ask("/detokenize", tokens=[50]),
            httpx.get(f"{service.address}/tokenizer_info", headers=bearer(KEY)),
        ]
        keyless = [
            service.ask("/tokenize", None, prompt=PROMPT),
            service.ask("/detokenize", None, tokens=[50]),
            httpx.get(f"{service.address}/tokenizer_info"),
        ]
    assert [answer.status_code for answer in keyless] == [401] * 3
    if "unknown" in kind:
        for answer in answers:
            assert (answer.status_code, answer.json()["error"]["param"]) == (400, "model")
            assert "tokenizer of 'tiny' is unknown" in answer.json()["error"]["message"]
    else:
        assert [answer.status_code for answer in answers] == [200] * 3


@pytest.mark.parametrize(
    "body", [ECHO, {"prompt": PROMPT} | LABELS, ECHO | {"max_tokens": 0}], ids=str
)
def test_what_a_key_may_spend_holds_for_echo_and_choices(servers, body) -> None:
    frugal = key_settings("frugal", KEY, money_per_day=1e-9).model_dump()
    rich = key_settings("rich", OTHER, money_per_day=1.0).model_dump()
    with running(servers, "ids", frugal, rich) as service:
        before = service.calls
        refused = service.ask("/v1/completions", **body)
        assert (refused.status_code, service.calls) == (402, before)
        assert refused.headers["x-should-retry"] == "false"
        paid = service.ask("/v1/completions", OTHER, **body)
        assert paid.status_code == 200
        assert paid.json()["usage"]["upstream"]["cost"] > 0
        assert service.ask("/v1/completions", None, **body).status_code == 401


@pytest.mark.parametrize(("tenants", "shared"), [("tt", True), ("tu", False)])
def test_labels_and_tenants(servers, tenants, shared) -> None:
    """Keys of one tenant share what the upstream showed; others do not meet."""
    keys = [
        key_settings(f"key {n}", key, tenant=tenant).model_dump()
        for n, (key, tenant) in enumerate(zip((KEY, OTHER), tenants, strict=True))
    ]
    with running(servers, "text", *keys, cache={"url": "memory://"}) as service:
        body = {"prompt": PROMPT} | LABELS
        found = [service.ask("/v1/completions", key, **body) for key in (KEY, OTHER, KEY)]
    seen = [answer.headers["x-cache"] for answer in found]
    assert seen == ["miss", "hit" if shared else "miss", "hit"]


def test_every_route_keeps_to_what_a_key_may_ask_at_once(servers) -> None:
    often = key_settings("often", KEY, per_minute=2).model_dump()
    with running(servers, "ids", often) as service:
        before = service.calls
        answers = [
            service.ask("/tokenize", prompt=PROMPT),
            service.ask("/v1/completions", **ECHO),
            service.ask("/v1/completions", prompt=PROMPT, **LABELS),
            service.ask("/detokenize", tokens=[50]),
        ]
    assert [answer.status_code for answer in answers] == [200, 200, 429, 429]
    assert service.calls == before + 1
