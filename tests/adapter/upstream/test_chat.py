"""Chat APIs: reading them, going on from what was said, and faults."""

from collections.abc import Iterator
from contextlib import aclosing
from dataclasses import replace
from typing import Any

import numpy as np
import pytest

from adapter.budget import Budget
from adapter.candidates import Draft, Position
from adapter.errors import BadRequest, UpstreamMalformed, UpstreamRefused
from adapter.request import Chat, Message
from adapter.upstream import Endpoint
from adapter.upstream.capabilities import CHAT
from adapter.upstream.chat import ChatRun, ChatSpeaker
from adapter.upstream.completions import EVERY
from adapter.upstream.tokens import TokenNames
from tests.support.chat_server import LLAMACPP, VLLM, ChatServer, Habits, chat_server
from tests.support.tiny import tiny
from tokenizer_maps.coverage import is_text
from tokenizer_maps.vocabulary import Vocabulary

ASKED = Chat((Message("system", "Short."), Message("user", "Where is the harbour?")))
SAID = "It is a small town"
FORMS = ("trailing message", "continue_final_message", "prefix")


@pytest.fixture(scope="module")
def server() -> Iterator[ChatServer]:
    with chat_server(tiny().upstream) as server:
        yield server


def speaker(server: ChatServer, vocabulary: Vocabulary, k: int = 20, **facts: Any) -> ChatSpeaker:
    return ChatSpeaker(Endpoint(server.base_url, "tiny"), vocabulary, k, replace(CHAT, **facts))


def turns(chat: Chat) -> list[dict[str, str]]:
    return [{"role": m.role, "content": m.content} for m in chat.messages]


def shown(server: ChatServer, prompt: list[int], position: Position) -> float:
    """How far a position's numbers are from the model's own, in nats."""
    row = server.model.logprobs(prompt)
    return max(abs(row[c.id].item() - c.logprob) for c in position.candidates)


async def total(run: Any) -> Draft:
    async with aclosing(run) as pieces:
        parts = [piece async for piece in pieces]
    positions = tuple(p for part in parts for p in part.positions)
    usage = sum((part.usage for part in parts[1:]), parts[0].usage)
    return Draft(positions, parts[-1].finish_reason, usage)


async def both(chat: ChatSpeaker, said: str, n: int, **more: Any) -> Draft:
    """A run, whole and streamed: the same."""
    whole = await chat.ask(ASKED, said, n, Budget(3), **more)
    streamed = await total(chat.stream(ASKED, said, n, Budget(3), **more))
    assert streamed.positions == whole.positions
    assert (streamed.finish_reason, streamed.usage) == (whole.finish_reason, whole.usage)
    return whole


async def assert_the_models_own(server: ChatServer, chat: ChatSpeaker, said: str = "") -> int:
    """Every position of a run is what the model has there; how many they are."""
    draft = await both(chat, said, 8)
    ids = server.ids(turns(ASKED), said)
    for position in draft.positions:
        row = server.model.logprobs(ids)
        for c in position.candidates:
            assert c.logprob == pytest.approx(row[c.id].item(), abs=1e-9)
        assert position.drafted is not None
        assert position.drafted.id == int(row.argmax())
        ids.append(position.drafted.id)
    return len(draft.positions)


async def test_openais_shape_is_the_models_own(server: ChatServer, vocabulary: Vocabulary) -> None:
    chat = speaker(server, vocabulary)
    assert await assert_the_models_own(server, chat) > 2
    await chat.close()


@pytest.mark.parametrize("form", FORMS)
async def test_what_was_said_is_gone_on_with(vocabulary: Vocabulary, form: Any) -> None:
    with chat_server(tiny().upstream, Habits(form, strict=False)) as server:
        chat = speaker(server, vocabulary, continues="text", continues_by=form)
        assert await assert_the_models_own(server, chat, SAID) > 2
        last = server.requests[-1]["messages"][-1]
        assert last.pop("prefix", None) is (True if form == "prefix" else None)
        assert last == {"role": "assistant", "content": SAID}
        marked = {"continue_final_message", "add_generation_prompt"} & set(server.requests[-1])
        assert len(marked) == 2 * (form == "continue_final_message")
        await chat.close()


async def test_nothing_marks_a_chat_of_which_nothing_was_said(
    server: ChatServer, vocabulary: Vocabulary
) -> None:
    chat = speaker(server, vocabulary, continues="text", continues_by="continue_final_message")
    await chat.ask(ASKED, "", 1, Budget(1))
    assert server.requests[-1]["messages"] == turns(ASKED)
    assert "continue_final_message" not in server.requests[-1]
    await chat.close()


async def test_every_setting_is_said_and_more_where_it_is_ignored(
    server: ChatServer, vocabulary: Vocabulary
) -> None:
    """OpenAI refuses fields it does not know; vLLM fills those that are left out."""
    plain = {"temperature": 0, "top_p": 1, "presence_penalty": 0, "frequency_penalty": 0, "n": 1}
    plain |= {"logprobs": True, "top_logprobs": 20, "max_tokens": 1, "stream": False}
    own = {"top_k": EVERY, "min_p": 0, "repetition_penalty": 1, "return_tokens_as_token_ids": True}
    strict = speaker(server, vocabulary)
    await strict.ask(ASKED, "", 1, Budget(1))
    await strict.close()
    sent = server.requests[-1]
    assert {k: v for k, v in sent.items() if k not in ("model", "messages")} == plain
    with chat_server(tiny().upstream, VLLM) as lax:
        open_handed = speaker(lax, vocabulary, unknown_fields="ignored", named_by="ids")
        await open_handed.ask(ASKED, "", 1, Budget(1), sampled=True)
        await open_handed.close()
        sent = lax.requests[-1]
    expected = plain | own | {"temperature": 1}
    assert {k: v for k, v in sent.items() if k not in ("model", "messages")} == expected


async def test_a_limit_goes_under_the_name_that_is_taken(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, Habits(newer=True)) as server:
        chat = speaker(server, vocabulary, limited_by="max_completion_tokens")
        assert await assert_the_models_own(server, chat) == 8
        assert {body["max_completion_tokens"] for body in server.requests} == {8}
        await chat.close()
        older = speaker(server, vocabulary)
        with pytest.raises(UpstreamRefused, match=r"max_completion_tokens.*adapter probe --chat"):
            await older.ask(ASKED, "", 2, Budget(1))
        await older.close()


async def test_of_unknown_words_tokens_are_asked_for_by_their_bytes(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, VLLM) as server:
        knows = replace(CHAT, unknown_fields="ignored", named_by="ids")
        chat = ChatSpeaker(Endpoint(server.base_url, "tiny"), None, 5, knows)
        (position, *_) = (await chat.ask(ASKED, "", 1, Budget(1))).positions
        await chat.close()
    assert all(c.token in vocabulary.tokens for c in position.candidates)


async def test_llama_cpp_repeats_what_it_goes_on_from(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, replace(LLAMACPP, loses=False)) as server:
        chat = speaker(server, vocabulary, continues="text", continues_by="trailing message")
        assert await assert_the_models_own(server, chat, SAID) > 2
        await chat.close()


def answer(*entries: dict[str, Any], content: str | None, finish: str = "length") -> dict[str, Any]:
    return {
        "index": 0,
        "message": {"role": "assistant", "content": content},
        "logprobs": {"content": list(entries), "refusal": None} if entries else None,
        "finish_reason": finish,
    }


def run(
    vocabulary: Vocabulary, said: str = "", n: int = 8, k: int = 2, loses: bool = False
) -> ChatRun:
    return ChatRun(TokenNames(vocabulary), k, n, said, loses)


@pytest.mark.parametrize("content", ["", None, SAID])
def test_an_end_that_is_not_shown_is_an_empty_run(
    vocabulary: Vocabulary, content: str | None
) -> None:
    """Also where the server repeats what was said: that is nothing new."""
    for loses in (False, True):
        one = run(vocabulary, SAID if content == SAID else "", loses=loses)
        assert one.read(answer(content=content, finish="stop")) == ()
        assert not one.lost_first
        assert one.finish(0) == "stop"


@pytest.mark.parametrize("dumb", ["always", "streams"])
async def test_answers_without_logprobs_say_what_to_do(vocabulary: Vocabulary, dumb: Any) -> None:
    with chat_server(tiny().upstream, Habits(dumb=dumb)) as server:
        chat = speaker(server, vocabulary)
        with pytest.raises(UpstreamMalformed, match="streamed too"):
            await total(chat.stream(ASKED, "", 4, Budget(1)))
        if dumb == "always":
            with pytest.raises(UpstreamMalformed, match="use a server or model that returns them"):
                await chat.ask(ASKED, "", 4, Budget(1))
        await chat.close()


async def test_a_sampled_token_beyond_k_is_no_candidate(vocabulary: Vocabulary) -> None:
    beyond = 0
    with chat_server(tiny().upstream, Habits(appends=True)) as server:
        chat = speaker(server, vocabulary, k=3)
        for _ in range(12):
            draft = await chat.ask(ASKED, "", 6, Budget(1), sampled=True)
            for position in draft.positions:
                assert len(position.candidates) == 3
                assert position.drafted is not None
                beyond += position.drafted.id not in {c.id for c in position.candidates}
        await chat.close()
    assert beyond > 3, "a weak test"


async def test_printed_parts_of_characters_are_never_taken_for_a_token(
    vocabulary: Vocabulary,
) -> None:
    """Many tokens are printed as U+FFFD, and the bytes given are then those of U+FFFD."""
    parts = 0
    with chat_server(tiny().upstream, Habits(named="printed", most=400)) as server:
        chat = speaker(server, vocabulary, k=400)
        for user in ("Ça va?", "東京の天気", "🙂 🚢", "It is"):
            asked = Chat((Message("user", user),))
            (position, *_) = (await chat.ask(asked, "", 1, Budget(1))).positions
            row = server.model.logprobs(server.ids(turns(asked)))
            for c in position.candidates:
                assert c.logprob == pytest.approx(row[c.id].item(), abs=1e-9)
            shown = {c.id for c in position.candidates}
            parts += sum(i not in shown for i in range(400))
            lost = 1.0 - sum(float(np.exp(c.logprob)) for c in position.candidates)
            assert position.hidden == pytest.approx(lost)
            assert position.floor == 0.0
        await chat.close()
    assert parts > 100


async def test_keys_that_collapse_are_told_apart_by_ids(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, replace(VLLM, hides_end=False)) as server:
        by_id = speaker(server, vocabulary, k=400, unknown_fields="ignored", named_by="ids")
        (position, *_) = (await by_id.ask(ASKED, "", 1, Budget(1))).positions
        assert len(position.candidates) == 400
        assert position.hidden == 0.0
        by_text = speaker(server, vocabulary, k=400)
        (position, *_) = (await by_text.ask(ASKED, "", 1, Budget(1))).positions
        row = server.model.logprobs(server.ids(turns(ASKED)))
        for c in position.candidates:
            assert c.logprob == pytest.approx(row[c.id].item(), abs=1e-9)
        assert len(position.candidates) < 400
        await by_id.close()
        await by_text.close()


LOSING = {"every_step_shown": False, "before_bias": True}
USERS = ("Ça va?", "東京の天気", "🙂 🚢", "It is", "Where?", "Why?", "1987", "that", "authorship")


def torn(server: ChatServer) -> ChatServer:
    """The same with a model that likes tokens which end inside a character."""
    head = server.model.model.lm_head.weight
    for i, token in enumerate(server.words.tokens):
        head.data[i] *= 1.5 if not is_text(token) else 1.0
    return server


async def test_a_run_ends_before_steps_that_are_lost(vocabulary: Vocabulary) -> None:
    """llama.cpp shows nothing of tokens that end inside a character."""
    shorter = singles = 0
    with (
        chat_server(tiny().upstream, replace(LLAMACPP, loses=False)) as whole,
        chat_server(tiny().upstream, LLAMACPP) as losing,
    ):
        full, chat = speaker(torn(whole), vocabulary), speaker(torn(losing), vocabulary, **LOSING)
        for user in USERS:
            asked = Chat((Message("user", user),))
            expected = await full.ask(asked, "", 8, Budget(1))
            draft = await chat.ask(asked, "", 8, Budget(2))
            streamed = await total(chat.stream(asked, "", 8, Budget(2)))
            for one in (draft, streamed):
                assert len(one.positions) >= 1
                for a, b in zip(one.positions, expected.positions, strict=False):
                    assert a.candidates == b.candidates
                    assert a.drafted in (b.drafted, None)
                if len(one.positions) < len(expected.positions):
                    assert one.finish_reason is None
                    shorter += 1
            singles += draft.positions[0].drafted is None
        await full.close()
        await chat.close()
    assert shorter > 3
    assert singles > 0, "no first position was lost: a weak test"


async def test_a_lost_first_step_without_a_way_round_is_an_error(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, LLAMACPP) as server:
        chat = speaker(torn(server), vocabulary, every_step_shown=False)
        found = set()
        for user in USERS:
            try:
                await chat.ask(Chat((Message("user", user),)), "", 2, Budget(1))
            except UpstreamMalformed as error:
                found.add(str(error))
        await chat.close()
    (said,) = found
    assert "token inside a character" in said


async def test_an_answer_is_not_gone_on_with_by_mistake(
    server: ChatServer, vocabulary: Vocabulary
) -> None:
    chat = speaker(server, vocabulary, continues="text", continues_by="trailing message")
    ends = Chat((*ASKED.messages, Message("assistant", "It")))
    with pytest.raises(BadRequest, match="the last message is the assistant's"):
        await chat.ask(ends, "", 1, Budget(1))
    await chat.close()


@pytest.mark.parametrize(
    ("choice", "said"),
    [
        (answer(content="x"), "without log-probabilities"),
        (answer(content=""), "has no token"),
        (answer({"token": "a", "logprob": -1.0}, content="a"), "no top_logprobs"),
        (answer({"token": "a", "logprob": -1.0, "top_logprobs": [3]}, content="a"), "no top_log"),
        ({"message": {"content": "a"}, "logprobs": {"content": [3]}}, "not in chat's shape"),
        ({"message": {"content": "a"}, "logprobs": {"content": 3}}, "not in chat's shape"),
        (
            answer(
                {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]},
                content="b",
            ),
            "tokenizer",
        ),
    ],
)
def test_says_what_is_wrong_with_an_answer(
    vocabulary: Vocabulary, choice: dict[str, Any], said: str
) -> None:
    def read() -> None:
        one = run(vocabulary)
        one.read(choice)
        one.finish(1)

    with pytest.raises(UpstreamMalformed, match=said):
        read()


def test_more_tokens_than_asked_for_are_cut(vocabulary: Vocabulary) -> None:
    entry = {"token": "a", "logprob": -1.0, "top_logprobs": [{"token": "a", "logprob": -1.0}]}
    one = run(vocabulary, n=1)
    assert len(one.read(answer(entry, entry, content="aa"))) == 1
    assert (one.cut, one.finish(2)) == (True, None)
