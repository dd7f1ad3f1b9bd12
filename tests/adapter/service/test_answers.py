"""Whole answers, read by the official client."""

import openai
import pytest

from adapter.candidates import END, Candidate, Echo, Label, Verdict
from adapter.service.parts import Part, Tally, joined
from adapter.service.render import token_text, usage
from adapter.upstream.lookups import Lookups, outcome
from tests.support.scripted_adapter import (
    HELLO,
    ScriptedAdapter,
    alternative,
    end_step,
    ending,
    step,
)

USER = [{"role": "user", "content": "p"}]
USAGE = {
    "prompt_tokens": 5,
    "completion_tokens": 3,
    "total_tokens": 8,
    "upstream": {
        "calls": 2,
        "prompt_tokens": 9,
        "cached_tokens": 4,
        "completion_tokens": 2,
        "cost": None,
    },
}


def sdk(address: str) -> openai.OpenAI:
    return openai.OpenAI(base_url=f"{address}/v1", api_key="none", max_retries=0)


@pytest.fixture(scope="module")
def client(hello):
    with sdk(hello) as client:
        yield client


def test_a_completion(client):
    raw = client.completions.with_raw_response.create(model="m", prompt="p")
    answer = raw.parse()
    assert answer.object == "text_completion"
    assert answer.id == "cmpl-" + raw.headers["x-request-id"]
    assert (answer.model, answer.choices[0].text) == ("m", "Hi there")
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("stop", None)
    assert answer.usage.model_dump(exclude_unset=True) == USAGE
    assert (raw.headers["x-steering"], raw.headers["x-cache"]) == ("on", "miss")
    assert "steering" not in answer.choices[0].model_dump()


def test_a_chat(client):
    raw = client.chat.completions.with_raw_response.create(model="m", messages=USER)
    answer = raw.parse()
    assert answer.object == "chat.completion"
    assert answer.id == "chatcmpl-" + raw.headers["x-request-id"]
    message = answer.choices[0].message
    assert (message.role, message.content, message.refusal) == ("assistant", "Hi there", None)
    assert (answer.choices[0].finish_reason, answer.choices[0].logprobs) == ("stop", None)
    assert answer.usage.model_dump(exclude_unset=True) == USAGE


def test_alpha_zero_says_that_steering_is_off(client):
    raw = client.completions.with_raw_response.create(
        model="m", prompt="p", extra_body={"steering": {"alpha": 0}}
    )
    assert raw.headers["x-steering"] == "off"


def test_every_prompt_has_n_choices_in_order(serve):
    adapter = ScriptedAdapter()
    with sdk(serve(adapter)) as client:
        answer = client.completions.create(model="m", prompt=["a", "b"], n=2)
    assert [choice.index for choice in answer.choices] == [0, 1, 2, 3]
    assert [request.prompt for request in adapter.asked] == ["a", "b"]
    assert answer.usage.prompt_tokens == 10
    assert answer.usage.completion_tokens == 12
    assert answer.usage.upstream["calls"] == 8


PARTIAL = (
    step("Hé", shown=(alternative("Hé", -0.5), alternative(b"\xe2\x82", -1.0))),
    step(b"\xe2\x82", "", shown=(alternative("x", -0.1), alternative("y", -0.2))),
    step(b"\xac", "€", shown=(alternative("", -0.2, END), alternative(b"\xac", -0.5))),
    step(" a", shown=()),
    ending("length"),
)


def test_classic_logprobs_are_parallel_arrays_with_the_taken_token_among_the_top(serve):
    with sdk(serve(ScriptedAdapter(PARTIAL))) as client:
        choice = client.completions.create(model="m", prompt="p", logprobs=1).choices[0]
    assert choice.text == "Hé€ a"
    assert choice.logprobs.tokens == ["Hé", "bytes:\\xe2\\x82", "bytes:\\xac", " a"]
    assert choice.logprobs.token_logprobs == [-0.5] * 4
    assert choice.logprobs.text_offset == [0, 2, 2, 3]
    assert choice.logprobs.top_logprobs == [
        {"Hé": -0.5},
        {"x": -0.1, "bytes:\\xe2\\x82": -0.5},
        {"<|end|>": -0.2, "bytes:\\xac": -0.5},
        {" a": -0.5},
    ]


def test_logprobs_zero_shows_the_taken_tokens_alone(client):
    choice = client.completions.create(model="m", prompt="p", logprobs=0).choices[0]
    assert choice.logprobs.top_logprobs == [{"Hi": -0.5}, {" there": -0.5}, {"<|end|>": -0.5}]


def test_chat_logprobs_carry_true_bytes(serve):
    with sdk(serve(ScriptedAdapter(PARTIAL))) as client:
        answer = client.chat.completions.create(
            model="m", messages=USER, logprobs=True, top_logprobs=1
        )
    first, second, third, _ = answer.choices[0].logprobs.content
    assert (first.token, first.bytes, first.logprob) == ("Hé", list("Hé".encode()), -0.5)
    assert (second.token, second.bytes) == ("bytes:\\xe2\\x82", [0xE2, 0x82])
    assert [top.token for top in second.top_logprobs] == ["x"]
    assert (third.top_logprobs[0].token, third.top_logprobs[0].bytes) == ("<|end|>", None)
    assert answer.choices[0].logprobs.refusal is None


def test_a_trace_says_why_each_token_was_taken(serve):
    shown = (alternative("Hi", -0.25), alternative("", -2.0, END))
    script = (
        step("Hi", rank=1, flags=frozenset({"multi", "clamped"}), source="cache", shown=shown),
        ending(flags=frozenset({"end_unsteered"})),
    )
    with sdk(serve(ScriptedAdapter(script))) as client:
        plain, full = (
            client.completions.create(model="m", prompt="p", extra_body={"steering": steering})
            for steering in ({"alpha": 2, "trace": True}, {"alpha": 2, "trace": "candidates"})
        )
    first = {
        "token": "Hi",
        "bytes": [72, 105],
        "logprob": -0.5,
        "upstream_logprob": -1.5,
        "offset": 1.0,
        "rank": 1,
        "status": "truncated",
        "flags": ["clamped", "multi"],
        "source": "cache",
    }
    steering = {"alpha": 2.0, "steps": [first], "flags": ["end_unsteered"]}
    assert plain.choices[0].model_dump()["steering"] == steering
    first["candidates"] = [
        {"token": "Hi", "bytes": [72, 105], "upstream_logprob": -1.25, "offset": 1.0,
         "logprob": -0.25},
        {"token": "<|end|>", "bytes": None, "upstream_logprob": -3.0, "offset": 1.0,
         "logprob": -2.0},
    ]  # fmt: skip
    assert full.choices[0].model_dump()["steering"] == steering


@pytest.mark.parametrize(
    ("lookups", "said"),
    [
        ([], "miss"),
        ([Lookups(0, 0)], "miss"),
        ([Lookups(0, 2)], "miss"),
        ([Lookups(2, 0)], "hit"),
        ([Lookups(2, 0), Lookups(1, 0)], "hit"),
        ([Lookups(1, 1)], "partial"),
        ([Lookups(1, 0), Lookups(0, 1)], "partial"),
    ],
)
def test_x_cache_sums_up_the_lookups_of_all_prompts(lookups, said):
    assert outcome(lookups) == said


def test_what_was_held_back_belongs_to_the_text(serve):
    script = (step("ab<", "ab"), ending("length", "<"))
    with sdk(serve(ScriptedAdapter(script))) as client:
        choice = client.completions.create(model="m", prompt="p").choices[0]
    assert (choice.text, choice.finish_reason) == ("ab<", "length")


def test_parts_of_several_choices_are_joined_by_choice():
    parts = [Part(i, (step(t),), (n,), None) for i, t, n in [(0, "a", 0), (1, "b", 0), (0, "c", 1)]]
    first, second = joined(parts)
    assert (first.text, first.offsets, second.text) == ("ac", (0, 1), "b")


def test_a_special_token_is_called_by_its_name():
    assert token_text(b"", "<|im_start|>") == "<|im_start|>"
    assert token_text(b"", END) == "<|end|>"
    assert end_step().special == END
    assert len(HELLO) == 4


def test_models(client):
    assert [model.id for model in client.models.list()] == ["m", "org/other"]
    assert client.models.retrieve("m").owned_by == "adapter"
    assert client.models.retrieve("org/other").id == "org/other"
    with pytest.raises(openai.NotFoundError) as missing:
        client.models.retrieve("x")
    assert missing.value.code == "model_not_found"


def test_an_unknown_model(client):
    with pytest.raises(openai.NotFoundError) as missing:
        client.completions.create(model="x", prompt="p")
    assert (missing.value.code, missing.value.param) == ("model_not_found", "model")


def test_a_prompt_that_nobody_can_count_is_estimated():
    assert usage(Tally(5, rough=True))["estimated"] is True
    assert "estimated" not in usage(Tally(5))


LABELS = (Label("A", -0.1, -0.7, 0.3, True), Label(" B", -2.4, -3.0, 0.0, False))
CHOSEN = (ending("stop", "A", verdict=Verdict(LABELS, uncertain=True)),)
TOLD = {
    "choices": [
        {"label": "A", "logprob": -0.1, "upstream_logprob": -0.7, "offset": 0.3, "shown": True},
        {"label": " B", "logprob": -2.4, "upstream_logprob": -3.0, "offset": 0.0, "shown": False},
    ],
    "uncertain": True,
}


def test_choices_come_with_the_winner(serve):
    steering = {"steering": {"choices": ["A", " B"]}}
    with sdk(serve(ScriptedAdapter(CHOSEN))) as client:
        completion = client.completions.create(
            model="m", prompt=["p", "q"], temperature=0.7, max_tokens=256, extra_body=steering
        )
        for index, choice in enumerate(completion.choices):
            assert (choice.index, choice.text, choice.finish_reason) == (index, "A", "stop")
            assert choice.model_extra["steering"] == TOLD
        chat = client.chat.completions.create(model="m", messages=USER, extra_body=steering)
        assert chat.choices[0].message.content == "A"
        assert chat.choices[0].model_extra["steering"] == TOLD
        *_, last = client.chat.completions.create(
            model="m", messages=USER, stream=True, extra_body=steering
        )
        assert last.choices[0].delta.content == "A"
        assert last.choices[0].model_extra["steering"] == TOLD


ECHO = Echo(
    Candidate(b"", 0.0, 1, "<s>"),
    (
        step("Hé", shown=(alternative("Hé", -0.5), alternative("x", -0.9))),
        step(b"\xe2", logprob=-3.25, shown=(alternative(" ", -0.25),)),
    ),
    "Hé\ufffd",
)
ECHOED = (ECHO, step(" a", shown=(alternative(" a", -0.5),)), ending("length"))


def test_an_echo_stands_in_front_with_nothing_said_of_its_first_token(serve):
    with sdk(serve(ScriptedAdapter(ECHOED))) as client:
        answer = client.completions.create(
            model="m", prompt="p", echo=True, logprobs=1, max_tokens=1
        )
        (choice,) = answer.choices
        assert choice.text == "Hé\ufffd a"
        logprobs = choice.logprobs
        assert logprobs.tokens == ["<s>", "Hé", "bytes:\\xe2", " a"]
        assert logprobs.token_logprobs == [None, -0.5, -3.25, -0.5]
        assert logprobs.top_logprobs == [
            None, {"Hé": -0.5}, {" ": -0.25, "bytes:\\xe2": -3.25}, {" a": -0.5},
        ]  # fmt: skip
        assert logprobs.text_offset == [0, 0, 2, 3]
        assert answer.usage.completion_tokens == 1
        first, *rest = client.completions.create(
            model="m", prompt="p", echo=True, logprobs=1, max_tokens=1, stream=True
        )
        assert first.choices[0].text == "Hé\ufffd"
        assert first.choices[0].logprobs.token_logprobs == [None, -0.5, -3.25]
        assert rest[0].choices[0].logprobs.text_offset == [3]


def test_an_echo_is_traced_apart_from_the_answer(serve):
    steering = {"steering": {"trace": True}}
    with sdk(serve(ScriptedAdapter(ECHOED))) as client:
        answer = client.completions.create(model="m", prompt="p", echo=True, extra_body=steering)
    told = answer.choices[0].model_extra["steering"]
    assert [one["logprob"] for one in told["echo"]] == [-0.5, -3.25]
    assert [one["token"] for one in told["steps"]] == [" a"]
    assert answer.choices[0].logprobs is None
