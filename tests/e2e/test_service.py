"""The whole service on a real socket, in front of a real engine, through the official client."""

import contextlib
import math

import httpx
import openai
import pytest

from adapter.adapter import Adapter
from adapter.client import AsyncClient, Client
from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import ModelNotFound, UnsupportedParameter
from adapter.local import Adapter as InProcess
from adapter.service.app import create_app
from tests.e2e.prompts import PROMPTS
from tests.support.configured import settings_for
from tests.support.sockets import serving
from tests.support.tiny import tiny

pytestmark = pytest.mark.engine

TOKENS = 8
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


@pytest.fixture(scope="module")
def engine():
    with Engine(tiny().gguf, EngineOptions(alias="tiny")) as engine:
        yield engine


@contextlib.contextmanager
def service(settings):
    with serving(create_app(Adapter.from_settings(settings), settings)) as address:
        yield address


@pytest.fixture(scope="module")
def address(engine, tmp_path_factory):
    """A service whose pair has another tokenizer than the engine."""
    template = tmp_path_factory.mktemp("templates") / "chat.jinja"
    template.write_text(CHAT)
    settings = settings_for(
        engine.base_url,
        api="llama.cpp",
        other=True,
        templates={"upstream": str(template)},
    )
    with service(settings) as address:
        yield address


@pytest.fixture
def client(address):
    with openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0) as client:
        yield client


@pytest.fixture
def upstream(engine):
    with openai.OpenAI(base_url=engine.base_url, api_key="none", max_retries=0) as client:
        yield client


def complete(client, prompt, **more):
    steering = more.pop("steering", {"trace": True})
    fields = {"max_tokens": TOKENS, "temperature": 0} | more
    return client.completions.create(
        model="tiny", prompt=prompt, extra_body={"steering": steering}, **fields
    )


def test_alpha_zero_is_the_upstream(client, upstream):
    """Greedy text and log-probabilities of 50 prompts, up to the engine's own noise."""
    compared = 0
    for prompt in PROMPTS:
        own = upstream.completions.create(
            model="tiny", prompt=prompt, max_tokens=TOKENS, temperature=0, logprobs=1
        )
        ours = complete(client, prompt, steering={"alpha": 0, "trace": True}, logprobs=1)
        assert ours.choices[0].text == own.choices[0].text
        assert ours.choices[0].finish_reason == own.choices[0].finish_reason
        steps = ours.choices[0].model_extra["steering"]["steps"]
        shown = own.choices[0].logprobs  # None where every token is part of a character
        entries = shown.model_extra["content"] if shown else []
        for step, entry in zip(steps, entries, strict=False):
            assert step["logprob"] == step["upstream_logprob"]
            if (step["bytes"] or []) != entry["bytes"]:
                break  # behind half a character the engine's own entries lose their places
            assert step["logprob"] == pytest.approx(entry["logprob"], abs=5e-5)
            compared += 1
    assert compared >= 3 * len(PROMPTS), compared


def test_alpha_zero_says_that_it_did_not_steer(address):
    body = {"model": "tiny", "prompt": "The", "max_tokens": 2, "temperature": 0}
    off = httpx.post(f"{address}/v1/completions", json=body | {"steering": {"alpha": 0}})
    on = httpx.post(f"{address}/v1/completions", json=body)
    assert (off.headers["x-steering"], on.headers["x-steering"]) == ("off", "on")


def test_steering_moves_the_answers(client):
    plain = [complete(client, p, steering={"alpha": 0}).choices[0].text for p in PROMPTS[:12]]
    moved = [complete(client, p, steering={"alpha": 3}).choices[0].text for p in PROMPTS[:12]]
    assert plain != moved


def test_completions_and_their_stream_agree(client):
    whole = complete(client, PROMPTS[3], logprobs=3)
    parts = list(complete(client, PROMPTS[3], logprobs=3, stream=True))
    assert "".join(p.choices[0].text for p in parts if p.choices) == whole.choices[0].text
    streamed = [
        t
        for p in parts
        if p.choices and p.choices[0].logprobs
        for t in p.choices[0].logprobs.token_logprobs
    ]
    assert streamed == whole.choices[0].logprobs.token_logprobs


def test_chat_and_its_stream_agree(client):
    def ask(**more):
        return client.chat.completions.create(
            model="tiny",
            messages=[{"role": "user", "content": "Where does the harbour end?"}],
            max_completion_tokens=TOKENS,
            temperature=0,
            logprobs=True,
            top_logprobs=2,
            **more,
        )

    whole = ask()
    parts = list(ask(stream=True, stream_options={"include_usage": True}))
    text = "".join(p.choices[0].delta.content or "" for p in parts if p.choices)
    assert text == whole.choices[0].message.content
    assert parts[-1].usage.total_tokens == whole.usage.total_tokens
    assert [
        e.token
        for p in parts
        if p.choices and p.choices[0].logprobs
        for e in p.choices[0].logprobs.content
    ] == [e.token for e in whole.choices[0].logprobs.content]


def test_a_trace_adds_up(client):
    answer = complete(client, "A prompt of its own", steering={"trace": "candidates", "alpha": 1.5})
    for step in answer.choices[0].model_extra["steering"]["steps"]:
        shown = step["candidates"]
        assert len(shown) == 20
        best = max(shown, key=lambda c: c["upstream_logprob"] + 1.5 * c["offset"])
        assert best["logprob"] == step["logprob"]
        assert step["status"] in ("certified", "truncated")
        scores = [c["upstream_logprob"] + 1.5 * c["offset"] - c["logprob"] for c in shown]
        assert max(scores) - min(scores) < 1e-9  # one constant for all candidates
    assert answer.usage.model_extra["upstream"]["calls"] >= 1


def test_a_seed_repeats_and_choices_differ(client):
    first, again = (complete(client, PROMPTS[5], temperature=1, seed=3, n=3) for _ in range(2))
    assert [c.text for c in first.choices] == [c.text for c in again.choices]
    assert len({c.text for c in first.choices}) > 1


def test_the_second_time_comes_from_the_cache(address):
    body = {"model": "tiny", "prompt": "Licensed under", "max_tokens": 4, "temperature": 0}
    first, second = (httpx.post(f"{address}/v1/completions", json=body) for _ in range(2))
    assert first.headers["x-cache"] == "miss"
    assert second.headers["x-cache"] == "hit"
    assert second.json()["choices"] == first.json()["choices"]
    assert second.json()["usage"]["upstream"]["calls"] == 0
    # another strength reads the same distributions
    third = httpx.post(f"{address}/v1/completions", json=body | {"steering": {"alpha": 0.01}})
    assert third.headers["x-cache"] in ("hit", "partial")


def test_stop_strings_and_bans(client):
    plain = complete(client, PROMPTS[20]).choices[0]
    stop = plain.text[2:4]
    stopped = complete(client, PROMPTS[20], stop=[stop]).choices[0]
    assert stopped.text == plain.text[: plain.text.index(stop)]
    assert stopped.finish_reason == "stop"


def test_the_python_client(address):
    with Client(address) as client:
        answer = client.complete(model="tiny", prompt=PROMPTS[3], temperature=0, max_tokens=TOKENS)
        steps = list(
            client.stream(model="tiny", prompt=PROMPTS[3], temperature=0, max_tokens=TOKENS)
        )
        assert "".join(s.text for s in steps) == answer.text
        # Another length of draft is another forward, which rounds in its own way.
        assert [s.offset for s in steps] == pytest.approx(
            [s.offset for s in answer.steps], abs=1e-5
        )
        with pytest.raises(ModelNotFound, match="no model 'gone'"):
            client.complete(model="gone", prompt="x")


async def test_in_process_and_over_a_socket_are_one(engine, address):
    """The same settings but for the template; every method but the list of models."""
    settings = settings_for(engine.base_url, api="llama.cpp", other=True)
    asked = {"model": "tiny", "prompt": PROMPTS[3], "temperature": 0, "max_tokens": TOKENS}
    async with (
        InProcess.from_settings(settings) as local,
        AsyncClient(address) as client,
    ):
        here, there = [await one.complete(**asked, alpha=1.5) for one in (local, client)]
        assert (here.text, here.finish_reason) == (there.text, there.finish_reason)
        for mine, theirs in zip(here.steps, there.steps, strict=True):
            assert mine.offset == pytest.approx(theirs.offset, abs=1e-3)
        steps = [step async for step in local.stream(**asked, alpha=1.5)]
        assert "".join(step.text for step in steps) == here.text
        labels = ["a", "b", "the", "zebra crossing"]
        chosen = [
            await one.choose(model="tiny", prompt=PROMPTS[3], choices=labels)
            for one in (local, client)
        ]
        assert chosen[0].text == chosen[1].text
        with pytest.raises(UnsupportedParameter, match="forced_scoring"):
            await local.score(model="tiny", text=PROMPTS[3])


def test_choices_take_one_call_where_all_are_shown(client, address):
    """llama.cpp's server shows the candidates; a label it does not show takes a call of its own."""
    shown = complete(client, PROMPTS[3], max_tokens=1, steering={"alpha": 0, "trace": "candidates"})
    (step,) = shown.choices[0].model_extra["steering"]["steps"]
    words = [c["token"].strip() for c in step["candidates"] if c["bytes"]]
    labels = [w for w in dict.fromkeys(words) if w.isalnum()][:4]
    fresh = {"cache-control": "no-store"}
    for prompt in (PROMPTS[3], None):
        body = {"model": "tiny", "steering": {"choices": labels}}
        if prompt is not None:
            answer = httpx.post(
                f"{address}/v1/completions", json=body | {"prompt": prompt}, headers=fresh
            ).json()
            assert answer["usage"]["upstream"]["calls"] == 1
            text = answer["choices"][0]["text"]
        else:
            body |= {"messages": [{"role": "user", "content": "Which?"}]}
            answer = httpx.post(f"{address}/v1/chat/completions", json=body, headers=fresh).json()
            text = answer["choices"][0]["message"]["content"]
        told = answer["choices"][0]["steering"]["choices"]
        assert [one["label"] for one in told] == labels
        assert text == max(told, key=lambda one: one["logprob"])["label"]
        assert all(one["shown"] for one in told)
        assert sum(math.exp(one["logprob"]) for one in told) == pytest.approx(1.0)


def refused(address, **body):
    body = {"model": "tiny", "prompt": "The", "max_tokens": 4} | body
    answer = httpx.post(f"{address}/v1/completions", json=body)
    error = answer.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    return answer.status_code, error


def test_what_cannot_be_honoured_is_a_400(address):
    cases = {
        "context_length_exceeded": {"prompt": "word " * 800},
        "model_not_found": {"model": "other"},
        "invalid_value": {"steering": {"alpha": 99}},
    }
    for code, body in cases.items():
        status, error = refused(address, **body)
        assert (status, error["code"]) == (404 if code == "model_not_found" else 400, code)
    status, error = refused(address, steering={"weights": {"nobody": 1}})
    assert (status, error["param"]) == (400, "steering.weights")
    status, error = refused(address, prompt=[1, 2, 99999])
    assert "99999" in error["message"]
    status, error = refused(address, logit_bias={"390": 5}, temperature=0)
    assert (status, error["param"]) == (400, "logit_bias")


def test_an_upstream_that_is_gone(tmp_path):
    with Engine(tiny().gguf, EngineOptions(alias="tiny")) as engine:
        settings = settings_for(engine.base_url, api="llama.cpp")
    with service(settings) as address:
        status, error = refused(address)
        assert (status, error["code"]) == (503, "upstream_unavailable")
        assert "no connection" in error["message"]
