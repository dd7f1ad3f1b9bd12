"""Streams, byte for byte, and what clients make of them."""

import asyncio
import json
import socket

import httpx
import openai
import pytest

from adapter.errors import UpstreamTimeout
from adapter.service.stream import EventStream
from tests.support.scripted_adapter import HANG, ScriptedAdapter, alternative, ending, step

USER = [{"role": "user", "content": "p"}]
CHAT = {"model": "m", "messages": USER, "stream": True}
COMPLETION = {"model": "m", "prompt": "p", "stream": True}
WAIT = 5.0


def sdk(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


def raw(address: str, path: str, body: dict) -> httpx.Response:
    return httpx.post(f"{address}/v1/{path}", json=body)


def events(response: httpx.Response) -> list[dict]:
    """All events but [DONE]; every event ends in exactly two newlines."""
    assert response.text.endswith("\n\n")
    blocks = response.text.removesuffix("\n\n").split("\n\n")
    assert all(block.startswith("data: ") and "\n" not in block for block in blocks)
    assert blocks.pop() == "data: [DONE]"
    return [json.loads(block.removeprefix("data: ")) for block in blocks]


def head(response: httpx.Response, kind: str, prefix: str, created: int) -> str:
    request_id = response.headers["x-request-id"]
    return f'data: {{"id":"{prefix}{request_id}","object":"{kind}","created":{created},"model":"m",'


def created(response: httpx.Response) -> int:
    return json.loads(response.text.split("\n\n")[0].removeprefix("data: "))["created"]


def test_a_chat_stream_byte_for_byte(hello):
    response = raw(hello, "chat/completions", CHAT)
    start = head(response, "chat.completion.chunk", "chatcmpl-", created(response))

    def chunk(delta: str, finish: str) -> str:
        choice = f'{{"index":0,"delta":{delta},"logprobs":null,"finish_reason":{finish}}}'
        return f'{start}"choices":[{choice}]}}\n\n'

    assert response.text == (
        chunk('{"role":"assistant","content":""}', "null")
        + chunk('{"content":"Hi"}', "null")
        + chunk('{"content":" there"}', "null")
        + chunk("{}", '"stop"')
        + "data: [DONE]\n\n"
    )


def test_a_completion_stream_with_usage_byte_for_byte(hello):
    body = COMPLETION | {"stream_options": {"include_usage": True}}
    response = raw(hello, "completions", body)
    start = head(response, "text_completion", "cmpl-", created(response))

    def chunk(text: str, finish: str) -> str:
        choice = f'{{"index":0,"text":"{text}","logprobs":null,"finish_reason":{finish}}}'
        return f'{start}"choices":[{choice}],"usage":null}}\n\n'

    upstream = '{"calls":2,"prompt_tokens":9,"cached_tokens":4,"completion_tokens":2,"cost":null}'
    usage = f'{{"prompt_tokens":5,"completion_tokens":3,"total_tokens":8,"upstream":{upstream}}}'
    assert response.text == (
        chunk("Hi", "null")
        + chunk(" there", "null")
        + chunk("", '"stop"')
        + f'{start}"choices":[],"usage":{usage}}}\n\n'
        + "data: [DONE]\n\n"
    )


def test_headers(hello):
    headers = raw(hello, "completions", COMPLETION).headers
    assert headers["content-type"] == "text/event-stream; charset=utf-8"
    assert headers["cache-control"] == "no-cache"
    assert headers["x-accel-buffering"] == "no"
    assert (headers["x-steering"], headers["x-cache"]) == ("on", "miss")


def test_events_are_ascii_so_that_no_client_sees_a_line_end_in_them(serve):
    text = "\u2028\u0085é\r\n"
    response = raw(serve(ScriptedAdapter((step(text), ending()))), "completions", COMPLETION)
    assert response.content.isascii()
    assert events(response)[0]["choices"][0]["text"] == text


def test_logprobs_and_trace_travel_with_their_token(serve):
    script = (step(b"\xc3", "", shown=(alternative("x", -0.1),)), step(b"\xa9", "é"), ending())
    body = COMPLETION | {"logprobs": 1, "steering": {"trace": True}}
    first, second, last = (
        event["choices"][0]
        for event in events(raw(serve(ScriptedAdapter(script)), "completions", body))
    )
    assert (first["text"], second["text"], last["text"]) == ("", "é", "")
    assert first["logprobs"]["top_logprobs"] == [{"x": -0.1, "bytes:\\xc3": -0.5}]
    assert (first["logprobs"]["text_offset"], second["logprobs"]["text_offset"]) == ([0], [0])
    assert first["steering"]["steps"][0]["bytes"] == [0xC3]
    assert (last["logprobs"], last["steering"]["steps"]) == (None, [])


def test_steps_that_show_nothing_send_nothing(serve):
    script = (step("ab", ""), step("c", "abc"), ending("length", "d"))
    texts = [
        event["choices"][0]["text"]
        for event in events(raw(serve(ScriptedAdapter(script)), "completions", COMPLETION))
    ]
    assert texts == ["abc", "d"]


def test_every_choice_has_one_beginning_and_one_end(hello):
    choices = [
        event["choices"][0] for event in events(raw(hello, "chat/completions", CHAT | {"n": 2}))
    ]
    for index in (0, 1):
        mine = [choice for choice in choices if choice["index"] == index]
        assert [c["delta"].get("role") for c in mine] == ["assistant", None, None, None]
        assert [c["finish_reason"] for c in mine] == [None, None, None, "stop"]


def test_the_official_client_reads_chats(hello):
    with sdk(hello) as client:
        stream = client.chat.completions.create(
            model="m", messages=USER, stream=True, stream_options={"include_usage": True}
        )
        *chunks, last = list(stream)
        text = "".join(chunk.choices[0].delta.content or "" for chunk in chunks)
        assert (text, last.usage.total_tokens, last.usage.upstream["calls"]) == ("Hi there", 8, 2)
        with client.chat.completions.stream(model="m", messages=USER, logprobs=True) as stream:
            final = stream.get_final_completion()
        assert final.choices[0].message.content == "Hi there"
        assert [t.token for t in final.choices[0].logprobs.content] == ["Hi", " there", "<|end|>"]


def test_the_official_client_reads_completions(hello):
    with sdk(hello) as client:
        chunks = list(client.completions.create(model="m", prompt="p", stream=True))
    assert "".join(chunk.choices[0].text for chunk in chunks) == "Hi there"
    assert len({(chunk.id, chunk.created, chunk.model) for chunk in chunks}) == 1


@pytest.mark.parametrize(
    ("fault", "code"), [(UpstreamTimeout("too slow"), "upstream_timeout"), (KeyError("p"), None)]
)
def test_a_failure_after_the_first_byte_is_the_last_event(serve, fault, code):
    address = serve(ScriptedAdapter((step("Hi"), fault)))
    response = raw(address, "completions", COMPLETION)
    assert response.status_code == 200
    *_, last = response.text.removesuffix("\n\n").split("\n\n")
    error = json.loads(last.removeprefix("data: "))["error"]
    assert (set(error), error["code"]) == ({"message", "type", "param", "code"}, code)
    with sdk(address) as client, pytest.raises(openai.APIError) as raised:
        list(client.chat.completions.create(model="m", messages=USER, stream=True))
    assert raised.value.message == error["message"]


def test_a_failure_before_the_first_byte_is_an_http_error(serve):
    response = raw(serve(ScriptedAdapter((UpstreamTimeout("slow"),))), "completions", COMPLETION)
    assert (response.status_code, response.json()["error"]["code"]) == (504, "upstream_timeout")


def test_the_first_chunk_arrives_while_the_second_is_made(serve):
    address = serve(ScriptedAdapter((step("Hi"), HANG)))
    with sdk(address) as client:
        stream = client.completions.create(model="m", prompt="p", stream=True)
        assert next(iter(stream)).choices[0].text == "Hi"
        stream.close()


@pytest.mark.parametrize("script", [(HANG,), (step("Hi"), HANG)], ids=["no byte yet", "begun"])
@pytest.mark.parametrize("stream", [False, True])
def test_a_client_that_hangs_up_stops_the_work(serve, script, stream):
    adapter = ScriptedAdapter(script)
    address = serve(adapter)
    host, port = address.removeprefix("http://").split(":")
    body = json.dumps({"model": "m", "prompt": "p", "stream": stream}).encode()
    with socket.create_connection((host, int(port))) as client:
        client.sendall(
            b"POST /v1/completions HTTP/1.1\r\nhost: x\r\ncontent-type: application/json\r\n"
            b"content-length: %d\r\n\r\n%s" % (len(body), body)
        )
        assert adapter.running.wait(WAIT)
        assert not adapter.cancelled.is_set()
    assert adapter.cancelled.wait(WAIT)
    assert httpx.get(f"{address}/healthz").status_code == 200


async def test_a_hang_up_is_noticed_on_servers_of_any_asgi_version():
    sent, closed = asyncio.Event(), asyncio.Event()

    async def chunks():
        try:
            yield b"data: 1\n\n"
            await asyncio.Event().wait()
        finally:
            closed.set()

    async def receive():
        await sent.wait()
        return {"type": "http.disconnect"}

    async def send(message):
        if message["type"] == "http.response.body":
            sent.set()

    scope = {"type": "http", "asgi": {"spec_version": "2.4"}}
    async with asyncio.timeout(WAIT):
        await EventStream(chunks(), {}, closed.clear)(scope, receive, send)
    assert closed.is_set()
