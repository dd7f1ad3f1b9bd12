"""The probe against real engines and against servers with other habits."""

import json
import math
from dataclasses import replace
from typing import Any

import pytest
from starlette.responses import JSONResponse, Response

from adapter.budget import Budget
from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import SettingsError, UpstreamMalformed, UpstreamRefused, UpstreamUnavailable
from adapter.prefix import Prefix
from adapter.request import Chat, Message
from adapter.upstream import Endpoint
from adapter.upstream import profiles as known
from adapter.upstream.capabilities import CHAT
from adapter.upstream.dialects import connect_chat
from adapter.upstream.probe import MOST_CALLS, probe
from adapter.upstream.profiles import profiles
from adapter.upstream.records import FIELDS, Record
from tests.support.chat_server import LLAMACPP as LLAMACPP_CHAT
from tests.support.chat_server import VLLM as VLLM_CHAT
from tests.support.chat_server import Habits, chat_server
from tests.support.model_server import ModelServer
from tests.support.tiny import tiny
from tests.support.twisted import Twist, broken_off, refused, twisted
from tokenizer_maps.vocabulary import Vocabulary

Json = dict[str, Any]


@pytest.fixture
def look(server: ModelServer, vocabulary: Vocabulary):
    """Probes a server with such habits."""

    async def look(*, calls: int = MOST_CALLS, words: bool = True, **habits: Any) -> Record:
        with twisted(server, **habits) as twist:
            endpoint = Endpoint(twist.base_url, "tiny")
            record = await probe(endpoint, Budget(calls), vocabulary if words else None)
            assert record.calls == len(twist.paths) <= calls
            return record

    return look


@pytest.fixture
def impatient(monkeypatch) -> None:
    monkeypatch.setattr("adapter.upstream.asking._WAITS", (0.0, 0.0))


def measured(record: Record) -> Json:
    return {name: f.value for name, f in record.findings.items() if f.how == "measured"}


VLLM = {
    "logprobs": True,
    "k_limit": 400,
    "continues": "ids",
    "continues_by": "prompt",
    "named_by": "ids",
    "before_temperature": True,
    "before_bias": True,
    "appends": True,
    "every_step_shown": True,
    "end_visible": True,
    "scoring": "chosen",
    "text_scoring": "echo",
    "streamed_logprobs": True,
    "reports_cached": False,
    "unknown_fields": "ignored",
    "repeatable": 0.0,
    "context": 512,
    "several": True,
}


async def test_every_capability_of_vllms_shape(server: ModelServer, vocabulary: Vocabulary) -> None:
    record = await probe(Endpoint(server.base_url, ""), Budget(MOST_CALLS), vocabulary)
    assert measured(record) == VLLM
    assert (record.model, record.api, record.reason) == ("tiny", "completions", "")
    assert (record.tier, record.profile, record.calls) == ("A", "vLLM", 19)
    assert set(record.findings) == set(FIELDS)


@pytest.mark.parametrize(("known", "most"), [(True, 400), (False, 256)])
async def test_no_call_asks_for_much(server, vocabulary, known: bool, most: int) -> None:
    """vLLM's engine ends when more candidates are asked for than the vocabulary has tokens."""
    server.requests.clear()
    words = vocabulary if known else None
    await probe(Endpoint(server.base_url, "tiny"), Budget(MOST_CALLS), words)
    assert 10 < len(server.requests) < MOST_CALLS
    assert max(body["max_tokens"] for body in server.requests) <= 8
    assert max(body["logprobs"] for body in server.requests) == most


@pytest.mark.engine
async def test_every_capability_of_llamacpp(vocabulary: Vocabulary) -> None:
    with Engine(tiny().gguf, EngineOptions(context=256, slots=2, threads=1)) as engine:
        record = await probe(Endpoint(engine.base_url, "demo"), Budget(MOST_CALLS), vocabulary)
        blind = await probe(Endpoint(engine.base_url, ""), Budget(MOST_CALLS))
    found = measured(record)
    assert found.pop("repeatable") < 1e-4
    assert found == {
        k: v for k, v in (VLLM | LLAMACPP).items() if k != "repeatable" and v is not None
    }
    assert (record.api, record.tier, record.profile) == ("llama.cpp", "A", "llama.cpp server")
    assert (blind.api, blind.model) == ("llama.cpp", "demo")
    assert measured(blind)["every_step_shown"] is False


LLAMACPP = {
    "text_scoring": "forced",
    "several": None,
    "appends": False,
    "every_step_shown": False,
    "scoring": "forced",
    "reports_cached": True,
    "context": 256,
}


@pytest.mark.parametrize(
    ("granted", "limit"),
    [(lambda k: k <= 7, 5), (lambda k: k <= 128, 128), (lambda k: k <= 1, 1)],
)
async def test_the_most_candidates_are_found_by_asking(look, granted, limit) -> None:
    record = await look(asked=lambda b: b if granted(b["logprobs"]) else refused(400))
    assert record.value("k_limit") == limit


async def test_a_limit_that_is_told_is_tried(look) -> None:
    told = "Requested sample logprobs of 1000, which is greater than max allowed: 77"
    record = await look(asked=lambda b: b if b["logprobs"] <= 77 else refused(400, told))
    assert (record.value("k_limit"), record.calls) == (77, 20)


async def test_candidates_left_out_in_silence_are_a_limit(look) -> None:
    record = await look(asked=lambda b: b | {"logprobs": min(5, b["logprobs"])})
    assert record.value("k_limit") == 5


def scaled(body: Json, choice: Json) -> None:
    for shown in filter(None, choice["logprobs"]["top_logprobs"]):
        for key in shown:
            shown[key] /= body["temperature"] or 1


async def test_logprobs_after_temperature_forbid_rejection(look) -> None:
    from adapter.upstream.capabilities import COMPLETIONS

    record = await look(told=scaled)
    assert record.value("before_temperature") is False
    assert record.api == "completions"
    assert not record.narrow(COMPLETIONS).rejection


def one_hot(body: Json, choice: Json) -> None:
    if body["temperature"] == 0:
        for key, shown in zip(
            choice["logprobs"]["tokens"], choice["logprobs"]["top_logprobs"], strict=True
        ):
            for name in shown or ():
                shown[name] = 0.0 if name == key else -50.0


async def test_greedy_logprobs_that_are_not_the_models_are_refused(look) -> None:
    record = await look(told=one_hot)
    assert record.api is None
    assert "temperature 0" in record.reason


async def test_text_prompts_only(look) -> None:
    record = await look(
        asked=lambda b: b if isinstance(b["prompt"], str) else refused(500, "7 validation errors")
    )
    assert (record.tier, record.api, record.reason) == ("B", "completions", "")
    assert record.calls <= MOST_CALLS


STRICT = {"model", "prompt", "max_tokens", "temperature", "logprobs", "logit_bias", "stream"}


async def test_a_strict_server_names_by_text(look) -> None:
    """The dialect sends fields it does not take, so that is no server for it."""
    record = await look(asked=lambda b: b if set(b) <= STRICT else refused(400, "unknown field"))
    assert record.value("named_by") == "text"
    assert record.value("unknown_fields") == "refused"
    assert record.value("continues") == "ids"
    assert (record.api, record.value("scoring")) == (None, "forced")
    assert "400" in record.reason


def hide_end(body: Json, choice: Json) -> None:
    shown = choice["logprobs"]
    for one in filter(None, shown["top_logprobs"]):
        one.pop("token_id:0", None)
    keep = [i for i, key in enumerate(shown["tokens"]) if key != "token_id:0"]
    for name, column in shown.items():
        shown[name] = [column[i] for i in keep]


async def test_a_hidden_end_is_found(look) -> None:
    assert (await look(told=hide_end)).value("end_visible") is False


async def test_streams_without_logprobs(look) -> None:
    def drop(body: Json) -> Json:
        return body | {"logprobs": None} if body.get("stream") else body

    assert (await look(asked=drop)).value("streamed_logprobs") is False


@pytest.mark.parametrize(("left_out", "note"), [(0, ""), (1, "the generated token is left out")])
async def test_echo(look, left_out: int, note: str) -> None:
    def cut(body: Json, choice: Json) -> None:
        if body.get("echo"):
            for name, column in choice["logprobs"].items():
                choice["logprobs"][name] = column[: len(column) - left_out]

    found = (await look(told=cut)).findings["text_scoring"]
    assert (found.value, found.note) == ("echo", note)


async def test_without_echo_tokens_are_forced(look) -> None:
    record = await look(asked=lambda b: b | {"echo": False})
    assert record.value("text_scoring") == "forced"


def shorter(body: Json) -> Json:
    return body | {"n": 1}


def alike(body: Json) -> Json:
    return body | {"seed": 1}


async def test_two_choices_of_one_request_have_to_be_two_draws(look) -> None:
    """A server may ignore `n`, refuse it, or draw once for both."""
    habits = {"": lambda b: b, "ignored": shorter, "the same": alike}
    found = {name: (await look(asked=asked)).findings["several"] for name, asked in habits.items()}
    assert {name: one.value for name, one in found.items()} == {
        "": True, "ignored": False, "the same": False,
    }  # fmt: skip
    assert found["the same"].note == "two choices were the same"
    refuses = await look(asked=lambda b: refused(400) if b.get("n") == 2 else b)
    assert refuses.value("several") is False


async def test_a_prompt_that_is_billed_for_each_choice_is_asked_for_by_each(look, server) -> None:
    def billed(body: Json) -> Json | Response:
        if body.get("n") != 2:
            return body
        told = json.loads(server.answer(body).body)
        told["usage"]["prompt_tokens"] *= 2
        return JSONResponse(told)

    found = (await look(asked=billed)).findings["several"]
    assert (found.value, found.note) == (False, "the prompt is read for each choice")


async def test_no_logprobs_is_tier_d(look) -> None:
    def none(body: Json) -> Json:
        return body | {"logprobs": None}

    record = await look(asked=none)
    assert (record.tier, record.api) == ("D", None)
    with pytest.raises(UpstreamMalformed, match="no log-probabilities"):
        record.usable()


async def looked(habits: Habits, words: Vocabulary | None, chat_only: bool = True) -> Record:
    with chat_server(tiny().upstream, habits) as chat:
        endpoint = Endpoint(chat.base_url, "tiny")
        record = await probe(endpoint, Budget(MOST_CALLS), words, chat_only)
        assert record.calls <= MOST_CALLS
        return record


CHATS = {
    "openai": (Habits(), ("none", None, 20, "bytes", "refused")),
    "vllm": (VLLM_CHAT, ("text", "continue_final_message", 400, "ids", "ignored")),
    "llama.cpp": (LLAMACPP_CHAT, ("text", "trailing message", 400, "ids", "ignored")),
    "deepseek": (Habits("prefix", strict=False), ("text", "prefix", 20, "bytes", "ignored")),
    "printed": (Habits(named="printed"), ("none", None, 20, "text", "refused")),
    "gpt-5": (Habits(newer=True), ("none", None, 20, "bytes", "refused")),
}


@pytest.mark.parametrize("name", CHATS)
async def test_every_capability_of_a_chat(vocabulary: Vocabulary, name: str) -> None:
    habits, expected = CHATS[name]
    record = await looked(habits, vocabulary)
    fields = ("continues", "continues_by", "k_limit", "named_by", "unknown_fields")
    assert tuple(record.value(field) for field in fields) == expected
    assert (record.api, record.reason) == ("chat", "")
    assert record.tier == ("C" if expected[0] == "none" else "B")
    assert record.value("end_visible") is not habits.hides_end
    assert record.value("streamed_logprobs") is True
    newer = "max_completion_tokens" if habits.newer else "max_tokens"
    assert record.narrow(CHAT).limited_by == newer
    shown = None if record.value("every_step_shown") is None else not habits.loses
    assert record.value("every_step_shown") is shown


async def test_the_limit_that_a_chat_takes_costs_one_call(vocabulary: Vocabulary) -> None:
    calls = [(await looked(Habits(newer=newer), vocabulary)).calls for newer in (False, True)]
    assert calls[1] == calls[0] + 1


async def test_a_provider_is_told_with_every_question_not_to_drop_fields(
    vocabulary: Vocabulary, openrouter: None
) -> None:
    with chat_server(tiny().upstream, Habits("trailing message", strict=False)) as chat:
        endpoint = Endpoint(chat.base_url, "tiny")
        record = await probe(endpoint, Budget(MOST_CALLS), vocabulary, True)
        assert (record.profile, record.value("unknown_fields")) == ("OpenRouter", "ignored")
        upstream = connect_chat(endpoint, record, vocabulary, 5)
        asked = Prefix.of(Chat((Message("user", "Where?"),)))
        await upstream.draft(asked, 2, Budget(1))
        assert [piece async for piece in upstream.stream(asked, 2, Budget(1))]
        await upstream.close()
    assert len(chat.requests) > 10
    assert all(body["provider"] == {"require_parameters": True} for body in chat.requests)
    assert not any("top_k" in body for body in chat.requests)


@pytest.mark.parametrize("name", ["OpenAI chat", "Azure OpenAI", "xAI"])
async def test_openai_is_not_told_of_penalties_that_are_none(name, vocabulary, monkeypatch) -> None:
    """Its newer models refuse these fields, whatever they say."""
    (own,) = [p for p in profiles() if p.name == name]
    monkeypatch.setattr(known, "profiles", lambda: (replace(own, hosts=("127.0.0.1",)),))
    with chat_server(tiny().upstream) as chat:
        upstream = connect_chat(Endpoint(chat.base_url, "tiny"), SOME_CHAT, vocabulary, 5)
        prompt = Prefix.of(Chat((Message("user", "Where?"),)))
        await upstream.draft(prompt, 2, Budget(1))
        await upstream.draws(prompt, 2, Budget(1), 3)
        await upstream.close()
    penalties = {"presence_penalty", "frequency_penalty"}
    for body in chat.requests:
        assert penalties & set(body) == (penalties if name == "xAI" else set())
        assert "logit_bias" not in body


SOME_CHAT = Record("", "tiny", "chat", "", 0, None, {}, chat_only=True)


@pytest.fixture
def openrouter(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its profile is that of servers on this machine."""
    (own,) = [p for p in profiles() if p.name == "OpenRouter"]
    monkeypatch.setattr(known, "profiles", lambda: (replace(own, hosts=("127.0.0.1",)),))


async def test_chat_is_chosen_where_nothing_else_is_found(vocabulary: Vocabulary) -> None:
    record = await looked(Habits(), vocabulary, chat_only=False)
    assert (record.api, record.tier, record.chat_only) == ("chat", "C", False)


@pytest.mark.parametrize("name", ["openai", "vllm", "llama.cpp"])
async def test_a_chat_of_unknown_words_is_never_thought_to_do_what_it_does_not(name: str) -> None:
    habits, expected = CHATS[name]
    record = await looked(habits, None)
    assert record.api == "chat"
    assert record.value("continues") in (expected[0], None)


async def test_chats_without_logprobs_are_tier_d(vocabulary: Vocabulary) -> None:
    record = await looked(Habits(dumb="always"), vocabulary)
    assert (record.api, record.tier) == (None, "D")


async def test_chats_whose_streams_have_none_are_not_streamed(vocabulary: Vocabulary) -> None:
    record = await looked(Habits(dumb="streams"), vocabulary)
    assert (record.api, record.value("streamed_logprobs")) == ("chat", False)
    assert not record.narrow(CHAT).streams


async def test_streams_that_leave_out_steps_are_not_used(vocabulary: Vocabulary) -> None:
    record = await looked(replace(VLLM_CHAT, drops=True), vocabulary)
    assert record.findings["streamed_logprobs"].value is False
    assert "left out" in record.findings["streamed_logprobs"].note
    assert not record.narrow(CHAT).streams


async def test_where_the_budget_ends_the_rest_is_open(look) -> None:
    record = await look(calls=5)
    assert record.calls == 5
    assert record.findings["repeatable"].how == "unverified"
    assert set(record.findings) == set(FIELDS)


async def test_a_server_that_is_loading_is_waited_for(look, impatient) -> None:
    replies = iter([refused(503), refused(429)])
    record = await look(asked=lambda b: next(replies, b))
    assert record.api == "completions"


@pytest.mark.parametrize(
    ("status", "kind", "words"),
    [
        (401, UpstreamRefused, "does not accept the key: check KEY"),
        (404, UpstreamRefused, "no model 'tiny'"),
        (503, UpstreamUnavailable, "not ready"),
    ],
)
async def test_what_lets_nobody_in_is_said(server, impatient, status, kind, words) -> None:
    with twisted(server, asked=lambda _: refused(status)) as twist:
        endpoint = Endpoint(twist.base_url, "tiny", key_name="KEY")
        with pytest.raises(kind, match=words):
            await probe(endpoint, Budget(MOST_CALLS))


async def test_nobody_there() -> None:
    with pytest.raises(UpstreamUnavailable, match="is the server running"):
        await probe(Endpoint("http://127.0.0.1:1/v1", "tiny"), Budget(MOST_CALLS))


@pytest.mark.parametrize("answered", [3, 6])
async def test_a_server_that_breaks_down_meanwhile_leaves_no_record(server, answered: int) -> None:
    """Else what was not answered would be taken for what it cannot do."""
    left = iter(range(answered))
    with (
        twisted(server, asked=lambda b: broken_off() if next(left, None) is None else b) as twist,
        pytest.raises(UpstreamUnavailable),
    ):
        await probe(Endpoint(twist.base_url, "tiny"), Budget(MOST_CALLS))


async def test_hanging_up_on_one_question_leaves_that_one_open(look) -> None:
    record = await look(asked=lambda b: broken_off() if b.get("adapter_probe") else b)
    assert record.findings["unknown_fields"].how == "unverified"
    assert record.api == "completions"


async def test_several_models_have_to_be_told_apart(server: ModelServer, monkeypatch) -> None:
    async def two(self: Twist, _: Any) -> Response:
        return JSONResponse({"data": [{"id": "a"}, {"id": "b"}]})

    monkeypatch.setattr(Twist, "handle", two)
    with twisted(server) as twist, pytest.raises(SettingsError, match="it lists: a, b"):
        await probe(Endpoint(twist.base_url, ""), Budget(MOST_CALLS))


def test_nan_is_no_difference() -> None:
    from adapter.upstream.sightings import Entry, Sighting, apart

    one = Sighting(Entry("a", -1.0), (Entry("a", -1.0), Entry("b", math.nan)))
    other = Sighting(Entry("a", -1.0), (Entry("a", -1.5), Entry("b", -2.0), Entry("c", -3.0)))
    assert apart(one, other) == 0.5
