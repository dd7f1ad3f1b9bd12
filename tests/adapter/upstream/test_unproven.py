"""Forms of going on that only a profile knows: the first answers prove them, or are refused."""

import pytest

from adapter.budget import Budget
from adapter.candidates import Draft
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix
from adapter.request import Chat, Message
from adapter.upstream import Endpoint, Upstream
from adapter.upstream.dialects import connect_chat
from adapter.upstream.records import Finding, Record
from adapter.upstream.unproven import UnprovenSpeaker
from tests.support.chat_server import ChatServer, Habits, chat_server
from tests.support.tiny import tiny
from tokenizer_maps.vocabulary import Vocabulary

ASKED = Prefix.of(Chat((Message("user", "Where is the harbour?"),)))


def connected(
    server: ChatServer, words: Vocabulary | None, how: str = "profile", form: str = "prefix"
) -> Upstream:
    findings = {"continues": Finding("text", how), "continues_by": Finding(form, how)}
    record = Record(server.base_url, "tiny", "chat", "", 0, "DeepSeek", findings, True)
    return connect_chat(Endpoint(server.base_url, "tiny"), record, words, 5)


def behind(draft: Draft, count: int) -> Prefix:
    """So many tokens into an answer."""
    prefix = ASKED
    for position in draft.positions[:count]:
        assert position.drafted is not None
        prefix = prefix.extend(position.drafted)
    return prefix


async def gone_on(upstream: Upstream, count: int, *, streamed: bool) -> list[Draft]:
    """A first answer, and three that go on from so many of its tokens."""
    if not streamed:
        first = await upstream.draft(ASKED, 6, Budget(2))
        prefix = behind(first, count)
        return [first, *[await upstream.draft(prefix, 6, Budget(2)) for _ in range(3)]]
    pieces = [piece async for piece in upstream.stream(ASKED, 6, Budget(2))]
    whole = Draft(tuple(p for piece in pieces for p in piece.positions), None, pieces[0].usage)
    prefix, runs = behind(whole, count), [whole]
    for _ in range(3):
        pieces = [piece async for piece in upstream.stream(prefix, 6, Budget(2))]
        positions = tuple(p for piece in pieces for p in piece.positions)
        runs.append(Draft(positions, None, pieces[0].usage))
    return runs


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("streamed", [False, True])
async def test_a_true_form_is_proven_and_costs_nothing(
    vocabulary: Vocabulary, known: bool, streamed: bool
) -> None:
    with chat_server(tiny().upstream, Habits("prefix", strict=False)) as server:
        upstream = connected(server, vocabulary if known else None)
        runs = await gone_on(upstream, 3, streamed=streamed)
        await upstream.close()
    asked = [body["max_tokens"] for body in server.requests]
    assert asked[:3] == ([4, 4, 6] if streamed else [6, 6, 6])
    assert streamed or len(asked) == 4  # a stream that shows nothing of use is asked for whole
    for again in runs[2:]:
        common = min(len(again.positions), len(runs[1].positions))
        assert again.positions[:common] == runs[1].positions[:common] != ()


@pytest.mark.parametrize("known", [True, False])
@pytest.mark.parametrize("streamed", [False, True])
@pytest.mark.parametrize(
    "habits", [Habits(strict=False), Habits(strict=False, deaf=True)], ids=["a turn", "left out"]
)
async def test_a_false_one_is_refused_by_what_the_prompt_grew(
    vocabulary: Vocabulary, habits: Habits, streamed: bool, known: bool
) -> None:
    with chat_server(tiny().upstream, habits) as server:
        upstream = connected(server, vocabulary if known else None)
        if known or habits.deaf:
            with pytest.raises(UpstreamMalformed, match=r"grew by \d+ tokens .*adapter probe"):
                await gone_on(upstream, 3, streamed=streamed)
            assert [len(body["messages"]) for body in server.requests] == [1, 2]
        else:
            await gone_on(upstream, 3, streamed=streamed)
        await upstream.close()


async def test_one_token_proves_nothing(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, Habits("prefix", strict=False)) as server:
        upstream = connected(server, vocabulary)
        await gone_on(upstream, 1, streamed=True)
        await upstream.close()
    assert [body["max_tokens"] for body in server.requests] == [4, 4, 4, 4]


async def test_what_was_measured_is_not_doubted(vocabulary: Vocabulary) -> None:
    with chat_server(tiny().upstream, Habits(strict=False)) as server:
        for how in ("measured", "profile"):
            upstream = connected(server, vocabulary, how)
            assert isinstance(upstream._speaker, UnprovenSpeaker) == (how == "profile")
            await upstream.close()
