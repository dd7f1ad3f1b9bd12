"""Streams that leave out the chunks without text, and so the steps inside a character."""

from collections.abc import Sequence
from contextlib import aclosing
from dataclasses import dataclass, replace
from typing import Any

import pytest

from adapter.budget import Budget
from adapter.candidates import END, Candidate, Draft, Position, make_position
from adapter.errors import UpstreamMalformed
from adapter.request import Chat, Message
from adapter.upstream.completions import CompletionsUpstream
from adapter.upstream.printed import Printed
from adapter.upstream.speaker import PromptSpeaker
from tests.adapter.upstream.test_chat import USERS, torn, total
from tests.adapter.upstream.test_chat import speaker as chat_speaker
from tests.adapter.upstream.test_transport import endpoint
from tests.adapter.upstream.vocabularies import BYTES, Allowed
from tests.support.chat_server import VLLM, chat_server
from tests.support.scripted import Reply, classic, events, scripted
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary


@dataclass
class Said:
    text: str = ""


def step(token: bytes | None) -> Position:
    """One that drafted a token; None: one that has no name, b"": the end."""
    if token is None:
        return make_position([Candidate(b"x", -1.0, 9)], None, 300)
    drafted = Candidate(token, -1.0, len(token), END if not token else None)
    return make_position([drafted], drafted, 300)


def through(*chunks: tuple[Sequence[bytes | None], str], count: int | None = None) -> list[int]:
    """How many positions pass with each chunk, and how many at the end of `count` tokens."""
    said = Said()
    printed = Printed(said, holds=True)
    passed = []
    for tokens, text in chunks:
        said.text += text
        passed.append(len(printed.through([step(token) for token in tokens])))
    return [*passed, len(printed.rest(count))]


CHARACTER = "東".encode()


@pytest.mark.parametrize(
    ("chunks", "count", "expected"),
    [
        ([([b"a"], "a"), ([b" b"], " b"), ([b""], "")], 3, [1, 1, 0, 1]),
        ([([b"a"], "a"), ([b""], "")], None, [1, 0, 0]),  # nobody knows whether that was next
        ([([CHARACTER[:1]], ""), ([CHARACTER[1:]], "東")], 2, [0, 2, 0]),
        ([([CHARACTER[:1], b"b"], "b")], 2, [0, 0]),
        ([([CHARACTER[1:]], "東"), ([b"a"], "a")], 3, [0, 0, 0]),  # its beginning is lost
        ([([b"a"], "a"), ([CHARACTER[:1]], "")], 2, [1, 0, 1]),
        ([([b"a"], "a"), ([CHARACTER[:1]], "")], 5, [1, 0, 0]),  # which of four was it?
        ([([b"a", b"b"], "a"), ([], "b")], 2, [0, 2, 0]),  # a text that comes late
        ([([b"a"], "a"), ([None], "\ufffd")], None, [1, 0, 0]),
        ([([b"\xff"] * 5, "")], 5, [0, 0]),  # no character has as many parts
        ([([b" a"], "a"), ([b" b"], "b")], 2, [1, 1, 0]),  # servers tidy spaces
    ],
)
def test_what_is_printed_passes(chunks: Any, count: int | None, expected: list[int]) -> None:
    assert through(*chunks, count=count) == expected


@pytest.mark.parametrize(("text", "count"), [("東", 1), ("", 4)])
def test_nothing_of_a_sample_is_given_up(text: str, count: int) -> None:
    """Asking again because of what was sampled would favour other samples."""

    def read() -> None:
        printed = Printed(Said(text), holds=False)
        assert len(printed.through([step(b"a" if text else b"\xe6")])) == 1
        printed.rest(count)

    with pytest.raises(UpstreamMalformed, match="leaves out tokens"):
        read()


async def test_a_chat_that_loses_chunks_is_cut_there() -> None:
    """The positions of a stream are the first ones of the whole answer, or there are fewer."""
    words = load_vocabulary(f"hf:{tiny().upstream}")
    shorter = asked_again = 0
    with chat_server(tiny().upstream, replace(VLLM, drops=True)) as server:
        chat = chat_speaker(torn(server), words, unknown_fields="ignored", named_by="ids")
        for user in USERS:
            asked = Chat((Message("user", user),))
            whole = await chat.ask(asked, "", 8, Budget(1))
            calls = len(server.requests)
            found = await total(chat.stream(asked, "", 8, Budget(2)))
            asked_again += len(server.requests) - calls - 1
            assert found.positions == whole.positions[: len(found.positions)]
            assert len(found.positions) >= 1
            shorter += len(found.positions) < len(whole.positions)
            if len(found.positions) < len(whole.positions):
                assert found.finish_reason is None
        await chat.close()
    assert shorter > 3, "a weak test"
    assert asked_again > 0, "no first position was lost: a weak test"


def chunk(ids: Sequence[int], text: str, finish: str = "") -> Any:
    steps = [{f"token_id:{i}": -0.1, "token_id:99": -3.0} for i in ids]
    return classic(*steps, text=text, finish=finish)


async def drafted(*replies: Reply, n: int) -> tuple[list[bytes], int]:
    """The tokens drafted behind a text by a stream, and the calls that took."""
    with scripted(*replies) as script:
        speaker = PromptSpeaker(CompletionsUpstream(endpoint(script.base_url), BYTES, 2))
        async with aclosing(speaker.stream("I", "", n, Allowed())) as run:
            parts: list[Draft] = [part async for part in run]
        await speaker.close()
        tokens = [p.drafted.token for d in parts for p in d.positions if p.drafted is not None]
        return tokens, script.calls


A, E, ACCENT = (byte + 2 for byte in b"a\xc3\xa9")
SPENT = {"choices": [], "usage": {"prompt_tokens": 1, "completion_tokens": 4}}


async def test_completions_that_lose_chunks_are_cut_there() -> None:
    """Of "aéa" the first half of é is missing: its second half would pass for the second step."""
    kept = events(chunk([A], "a"), chunk([E], ""), chunk([ACCENT], "é"), chunk([A], "a"), SPENT)
    lost = events(chunk([A], "a"), chunk([ACCENT], "é"), chunk([A], "a"), SPENT)
    assert await drafted(kept, n=4) == ([b"a", b"\xc3", b"\xa9", b"a"], 1)
    assert await drafted(lost, n=4) == ([b"a"], 1)


async def test_completions_whose_first_chunk_is_lost_are_asked_for_whole() -> None:
    lost = events(chunk([ACCENT], "é"), chunk([A], "a"), SPENT)
    whole = Reply(body=chunk([E, ACCENT, A], "éa", "length"))
    assert await drafted(lost, whole, n=3) == ([b"\xc3", b"\xa9", b"a"], 2)
