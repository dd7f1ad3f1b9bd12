"""The Python client against the service on a real socket."""

import asyncio
import json
import subprocess
import sys
import threading
from dataclasses import replace

import pytest

from adapter.candidates import END, Candidate, Echo, Label, Verdict
from adapter.client import Answer, AnswerUsage, AsyncClient, Choice, Client, Score
from adapter.errors import (
    BadRequest,
    BudgetExceeded,
    ModelNotFound,
    MoneyExceeded,
    ServiceError,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from tests.support.scripted_adapter import (
    HANG,
    HELLO,
    USAGE,
    ScriptedAdapter,
    ScriptedLocal,
    alternative,
    end_step,
    ending,
    step,
)
from tests.support.sockets import serving

USER = [{"role": "user", "content": "p"}]
HELLO_STEPS = HELLO[:3]
WAIT = 5.0


@pytest.fixture
def client(hello):
    with Client(hello) as client:
        yield client


def answering(status: int, body: bytes, kind: bytes = b"application/json"):
    """An app that gives one answer to everything."""

    async def app(scope, receive, send):
        if scope["type"] == "http":
            headers = [(b"content-type", kind)]
            await send({"type": "http.response.start", "status": status, "headers": headers})
            await send({"type": "http.response.body", "body": body})

    return app


def test_complete(client):
    answer = client.complete(model="m", prompt="p", alpha=2.0)
    assert answer == Answer("Hi there", HELLO_STEPS, AnswerUsage(5, 3, USAGE), "stop")


def test_chat(client):
    answer = client.chat(model="m", messages=USER)
    assert (answer.text, answer.steps) == ("Hi there", HELLO_STEPS)


def test_stream(client):
    assert tuple(client.stream(model="m", prompt="p")) == HELLO_STEPS
    assert tuple(client.stream(model="m", messages=USER)) == HELLO_STEPS


def test_models(client):
    assert client.models() == ("m", "org/other")


def test_a_stated_cost_is_told_and_a_missing_one_is_none(client):
    spent = {"calls": 1, "prompt_tokens": 3, "cached_tokens": 0, "completion_tokens": 1}
    usage = {"prompt_tokens": 3, "completion_tokens": 1, "total_tokens": 4}
    events = [
        {"choices": [{"text": "a", "finish_reason": "length", "steering": {"finish": "budget"}}]},
        {"choices": [], "usage": usage | {"upstream": spent | {"cost": 0.5, "estimated": True}}},
    ]
    body = b"".join(b"data: %b\n\n" % json.dumps(one).encode() for one in events)
    app = answering(200, body + b"data: [DONE]\n\n", b"text/event-stream")
    with serving(app) as address, Client(address) as paid:
        told = paid.complete(model="m", prompt="p")
    assert (told.usage.cost, told.usage.estimated, told.finish) == (0.5, True, "budget")
    free = client.complete(model="m", prompt="p")
    assert (free.usage.cost, free.usage.estimated, free.finish) == (None, False, None)


async def test_the_async_client_is_the_same(hello):
    async with AsyncClient(hello + "/v1/") as client:
        answer = await client.complete(model="m", prompt=[1, 2])
        assert answer.steps == HELLO_STEPS
        assert (await client.chat(model="m", messages=USER)).text == "Hi there"
        assert await client.models() == ("m", "org/other")
        assert [step async for step in client.stream(model="m", prompt="p")] == list(HELLO_STEPS)


LABELS = (Label("A", -0.1, -0.7, 0.3, True), Label("B", -2.4, -3.0, 0.0, False))
CHOSEN = (ending("stop", "A", verdict=Verdict(LABELS, uncertain=True)),)
ECHOED = (Echo(Candidate(b"a", 0.0, 1), HELLO_STEPS[:2], "a Hi there"), ending("length"))


def test_choose(serve):
    adapter = ScriptedAdapter(CHOSEN)
    with Client(serve(adapter)) as client:
        for given in ({"prompt": "p"}, {"messages": USER}):
            choice = client.choose(model="m", choices=("A", "B"), alpha=2.0, **given)
            assert choice == Choice("A", LABELS, True, AnswerUsage(5, 0, USAGE))
    assert [request.choices for request in adapter.asked] == [("A", "B")] * 2
    assert {request.alpha for request in adapter.asked} == {2.0}


def test_score(serve):
    adapter = ScriptedAdapter(ECHOED)
    with Client(serve(adapter)) as client:
        score = client.score(model="m", text="a Hi there", alpha=0.5)
    assert score == Score(
        "a Hi there", steps_without_text(HELLO_STEPS[:2]), AnswerUsage(5, 0, USAGE)
    )
    assert (score.logprob, score.upstream_logprob) == (-1.0, -3.0)
    (request,) = adapter.asked
    assert (request.echo, request.sampling.max_tokens, request.alpha) == ("scores", 0, 0.5)


def steps_without_text(steps):
    """What is given back releases no text: it was there before."""
    return tuple(replace(step, text="") for step in steps)


async def test_in_process_it_is_the_same(hello):
    local = ScriptedLocal(ScriptedAdapter())
    async with AsyncClient(hello) as client:
        for one in (local, client):
            answer = await one.complete(model="m", prompt="p", alpha=2.0)
            assert answer == Answer("Hi there", HELLO_STEPS, AnswerUsage(5, 3, USAGE), "stop")
            assert (await one.chat(model="m", messages=USER)) == answer
            assert [s async for s in one.stream(model="m", prompt="p")] == list(HELLO_STEPS)
    choosing = ScriptedLocal(ScriptedAdapter(CHOSEN))
    choice = await choosing.choose(model="m", prompt="p", choices=["A", "B"])
    assert choice == Choice("A", LABELS, True, AnswerUsage(5, 0, USAGE))
    scoring = ScriptedLocal(ScriptedAdapter(ECHOED))
    assert (await scoring.score(model="m", text=[1, 2])).logprob == -1.0


@pytest.mark.parametrize("before", [(), (step("Hi"),)], ids=["at once", "in the middle"])
async def test_in_process_errors_are_the_same(before):
    local = ScriptedLocal(ScriptedAdapter((*before, MoneyExceeded("over"))))
    with pytest.raises(MoneyExceeded, match="over"):
        await local.complete(model="m", prompt="p")
    with pytest.raises(BadRequest, match="temperature"):
        await local.complete(model="m", prompt="p", temperature=9)


async def test_in_process_a_stream_comes_as_it_is_made_and_stops_when_it_is_left():
    adapter = ScriptedAdapter((step("Hi"), HANG))
    stream = ScriptedLocal(adapter).stream(model="m", prompt="p")
    assert (await anext(stream)).text == "Hi"
    await stream.aclose()
    assert adapter.cancelled.is_set()


def refusing(*answers):
    """An app that gives one (status, headers) after the other, and the times it was asked."""
    asked = []

    async def app(scope, receive, send):
        if scope["type"] != "http":
            return
        status, headers = answers[min(len(asked), len(answers) - 1)]
        asked.append(scope["path"])
        body = b'{"data": [{"id": "m"}]}' if status == 200 else b"{}"
        head = [(k.encode(), v.encode()) for k, v in headers.items()]
        await send({"type": "http.response.start", "status": status, "headers": head})
        await send({"type": "http.response.body", "body": body})

    return app, asked


SOON = {"retry-after-ms": "1"}


@pytest.mark.parametrize(
    ("status", "headers", "times"),
    [
        (503, SOON | {"x-should-retry": "true"}, 3),
        (504, SOON | {"x-should-retry": "true"}, 3),
        (429, SOON | {"x-should-retry": "false"}, 1),
        (503, SOON | {"x-should-retry": "false"}, 1),
        (429, SOON, 3),
        (503, {"retry-after": "0.001"}, 3),
        (503, {"retry-after-ms": "60000"}, 1),
        (429, {"retry-after": "31", "x-should-retry": "true"}, 1),
        (500, SOON, 1),
        (502, SOON, 1),
        (400, SOON, 1),
    ],
)
def test_who_is_asked_again(status, headers, times):
    app, asked = refusing((status, headers))
    with serving(app) as address, Client(address) as client:
        with pytest.raises(ServiceError) as raised:
            client.complete(model="m", prompt="p")
        assert raised.value.status == status
        assert len(asked) == times


def test_another_try_may_help():
    app, asked = refusing((503, SOON), (200, {}))
    with serving(app) as address, Client(address) as client:
        assert client.models() == ("m",)
    assert len(asked) == 2
    app, asked = refusing((503, SOON), (200, {}))
    with (
        serving(app) as address,
        Client(address, max_retries=0) as client,
        pytest.raises(ServiceError),
    ):
        client.models()
    assert len(asked) == 1


def test_what_broke_off_is_not_asked_again(serve):
    adapter = ScriptedAdapter((step("Hi"), UpstreamUnavailable("off")))
    with Client(serve(adapter)) as client, pytest.raises(UpstreamUnavailable):
        client.complete(model="m", prompt="p")
    assert len(adapter.asked) == 1


def test_the_wait_that_is_asked_for_is_told(serve):
    adapter = ScriptedAdapter(refusal=UpstreamUnavailable("off", retry_after=40.0))
    with Client(serve(adapter)) as client, pytest.raises(UpstreamUnavailable) as raised:
        client.complete(model="m", prompt="p")
    assert (raised.value.retry_after, len(adapter.asked)) == (40.0, 0)


def test_without_a_trace_there_are_no_steps(client):
    answer = client.complete(model="m", prompt="p", trace=False)
    assert (answer.text, answer.steps, answer.usage.completion_tokens) == ("Hi there", (), 3)


def test_everything_asked_reaches_the_service(serve):
    adapter = ScriptedAdapter()
    with Client(serve(adapter)) as client:
        client.complete(
            model="m", prompt="p", alpha=2.0, weights={"e": 0.5}, trace="candidates", max_tokens=7,
            temperature=0.5, top_p=0.9, seed=3, stop=["x"], presence_penalty=0.1,
            frequency_penalty=0.2, logit_bias={5: -100.0},
        )  # fmt: skip
    (request,) = adapter.asked
    sampling = request.sampling
    assert (request.alpha, request.weights, request.trace) == (2.0, {"e": 0.5}, "candidates")
    assert (sampling.max_tokens, sampling.temperature, sampling.top_p) == (7, 0.5, 0.9)
    assert (sampling.seed, sampling.stop, sampling.logit_bias) == (3, ("x",), {5: -100.0})
    assert (sampling.presence_penalty, sampling.frequency_penalty) == (0.1, 0.2)


def test_steps_survive_the_wire_whole(serve):
    shown = (alternative(b"\xff", -0.2), alternative("", -2.0, END), alternative("", -3.0, "<s>"))
    script = (
        step(b"\xff", "\ufffd", flags=frozenset({"multi"}), rank=3, source="cache", shown=shown),
        step("", special="<s>"),
        ending(flags=frozenset({"end_unsteered"})),
    )
    with Client(serve(ScriptedAdapter(script))) as client:
        answer = client.complete(model="m", prompt="p", trace="candidates")
    assert answer.steps == script[:2]
    assert answer.flags == {"end_unsteered"}


@pytest.mark.parametrize(
    ("script", "texts"),
    [
        ((step("a<", "a"), ending("length", "<")), ["a<"]),
        ((step("a<", "a"), step("b", "<b"), ending("length")), ["a", "<b"]),
        ((step("a<", "a"), end_step(), ending("stop", "<")), ["a", "<"]),
        ((step(b"\xe2", ""), step(b"\x82\xac", "€"), ending("length")), ["", "€"]),
        ((step(b"\xe2", ""), ending("length", "\ufffd")), ["\ufffd"]),
        ((step(b"\xff", "\ufffd"), step("<", ""), ending("length", "<")), ["\ufffd", "<"]),
        ((step("abST", "ab"), step("OP", ""), ending("stop")), ["ab", ""]),
    ],
)
def test_the_texts_of_streamed_steps_add_up_to_the_answer(serve, script, texts):
    with Client(serve(ScriptedAdapter(script))) as client:
        assert [step.text for step in client.stream(model="m", prompt="p")] == texts
        answer = client.complete(model="m", prompt="p")
    assert [step.text for step in answer.steps] == texts
    assert answer.text == "".join(texts)


def test_refusals_carry_status_and_code(client):
    with pytest.raises(BadRequest) as raised:
        client.complete(model="m", prompt="p", temperature=3.0)
    assert raised.value.param == "temperature"
    assert (raised.value.status, raised.value.code) == (400, "invalid_value")
    with pytest.raises(ModelNotFound) as raised:
        client.chat(model="x", messages=USER)
    assert (raised.value.status, raised.value.code) == (404, "model_not_found")


@pytest.mark.parametrize(
    ("fault", "kind", "status", "code"),
    [
        (UpstreamTimeout("slow"), UpstreamTimeout, 504, "upstream_timeout"),
        (BudgetExceeded("over"), BudgetExceeded, 429, "budget_exceeded"),
        (MoneyExceeded("over"), MoneyExceeded, 402, "budget_exceeded"),
        (UpstreamUnavailable("off"), UpstreamUnavailable, 503, "upstream_unavailable"),
        (ZeroDivisionError("odd"), ServiceError, 500, None),
    ],
)
@pytest.mark.parametrize("before", [(), (step("Hi"),)], ids=["at once", "in the middle"])
def test_failures_are_of_one_class_early_and_late(serve, fault, kind, status, code, before):
    with Client(serve(ScriptedAdapter((*before, fault))), max_retries=0) as client:
        with pytest.raises(kind) as raised:
            client.complete(model="m", prompt="p")
        assert type(raised.value) is kind
        assert (raised.value.status, raised.value.code) == (status, code)
        with pytest.raises(kind):
            list(client.stream(model="m", prompt="p"))


@pytest.mark.parametrize(
    ("status", "body", "expected"),
    [
        (200, b'data: {"choices": []}\n\n', (502, "broken_stream")),
        (200, b'data: {"cho', (502, "malformed_answer")),
        (200, b"data: [DONE]\n\n", (502, "malformed_answer")),
        (200, b"data: 7\n\n", (502, "malformed_answer")),
        (200, b"<html>", (502, "broken_stream")),
        (502, b"<html>", (502, None)),
        (503, b'{"error": "busy"}', (503, None)),
    ],
)
def test_answers_of_something_else_are_errors(status, body, expected):
    with serving(answering(status, body)) as address, Client(address, max_retries=0) as client:
        with pytest.raises(ServiceError) as raised:
            client.complete(model="m", prompt="p")
        assert (raised.value.status, raised.value.code) == expected


def test_a_list_of_models_of_something_else_is_an_error():
    with (
        serving(answering(200, b"[]")) as address,
        Client(address) as client,
        pytest.raises(ServiceError, match="check the address"),
    ):
        client.models()


def test_a_service_that_is_not_there_or_silent():
    with (
        Client("http://127.0.0.1:9", max_retries=0) as client,
        pytest.raises(ServiceError) as raised,
    ):
        client.models()
    assert raised.value.status == 503


def test_a_service_that_does_not_answer_in_time(serve):
    address = serve(ScriptedAdapter((HANG,)))
    with Client(address, timeout=0.05) as client, pytest.raises(ServiceError) as raised:
        client.complete(model="m", prompt="p")
    assert raised.value.status == 504


def test_a_key_is_sent_as_a_bearer_token():
    seen = []

    async def app(scope, receive, send):
        if scope["type"] == "http":
            seen.append(dict(scope["headers"]).get(b"authorization"))
            await answering(200, b'{"data": []}')(scope, receive, send)

    with serving(app) as address:
        for key in ("k", None):
            with Client(address, key) as client:
                assert client.models() == ()
    assert seen == [b"Bearer k", None]


def test_a_stream_that_is_left_stops_the_work(serve):
    adapter = ScriptedAdapter((step("Hi"), HANG))
    with Client(serve(adapter)) as client:
        stream = client.stream(model="m", prompt="p")
        assert next(stream).text == "Hi"
        stream.close()
        assert adapter.cancelled.wait(WAIT)


def test_a_client_that_is_closed_during_a_stream_stops_the_work(serve):
    adapter = ScriptedAdapter((step("Hi"), HANG))
    with Client(serve(adapter)) as client:
        stream = client.stream(model="m", prompt="p")
        next(stream)
    assert adapter.cancelled.wait(WAIT)
    with pytest.raises(RuntimeError, match="closed"):
        next(stream)


def test_a_closed_client_says_so_and_leaves_no_thread(hello):
    before = threading.active_count()
    client = Client(hello)
    client.close()
    client.close()
    assert threading.active_count() == before
    with pytest.raises(RuntimeError, match="the client is closed"):
        client.models()


def test_a_forgotten_client_ends_its_thread(hello):
    before = set(threading.enumerate())
    client = Client(hello)
    (thread,) = set(threading.enumerate()) - before
    del client
    thread.join(WAIT)
    assert not thread.is_alive()


async def test_cancelling_a_call_stops_the_work(serve):
    adapter = ScriptedAdapter((HANG,))
    async with AsyncClient(serve(adapter)) as client:
        call = asyncio.create_task(client.complete(model="m", prompt="p"))
        assert await asyncio.to_thread(adapter.running.wait, WAIT)
        call.cancel()
        with pytest.raises(asyncio.CancelledError):
            await call
        assert await asyncio.to_thread(adapter.cancelled.wait, WAIT)


def test_a_stream_takes_a_prompt_or_messages(client):
    for wrong in ({}, {"prompt": "p", "messages": USER}):
        with pytest.raises(TypeError, match="either prompt or messages"):
            next(client.stream(model="m", **wrong))


def test_the_package_is_light_and_names_its_public_api():
    code = """
import sys, adapter
assert adapter.__version__
assert {"Adapter", "Client", "AsyncClient", "Settings", "errors"} <= set(dir(adapter))
assert adapter.errors.AdapterError
heavy = {"torch", "transformers", "fastapi", "aiohttp", "httpx", "openai", "pydantic"}
assert not heavy & set(sys.modules), heavy & set(sys.modules)
adapter.Client, adapter.AsyncClient, adapter.Settings
heavy = {"torch", "transformers", "fastapi", "openai"} & set(sys.modules)
assert not heavy, heavy
try:
    adapter.nothing
except AttributeError as error:
    assert "nothing" in str(error)
else:
    raise SystemExit(1)
"""
    subprocess.run([sys.executable, "-c", code], check=True)
