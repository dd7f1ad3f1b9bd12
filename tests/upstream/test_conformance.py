"""What every upstream has to hold: one suite for any server that can be steered."""

import math
from contextlib import aclosing

import pytest

from adapter.budget import Budget
from adapter.candidates import END, Draft, Position
from adapter.errors import UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream import Upstream
from adapter.upstream.probe import MOST_CALLS
from tests.upstream.conftest import Served
from tokenizer_maps.coverage import is_text

TEXTS = ("The capital of France is", "1, 2, 3, 4,", "It's a small town;", "東京の天気は")


def prefixes(served: Served) -> list[Prefix]:
    return [served.prefix(text) for text in TEXTS]


def by_id(position: Position) -> dict[int | None, float]:
    return {c.id: c.logprob for c in position.candidates}


def assert_alike(one: Position, other: Position, served: Served) -> None:
    """Candidates may swap places at the end of a list, where they are as good as equal."""
    a, b = by_id(one), by_id(other)
    assert len(a) == len(b)
    for here, there, floor in ((a, b, min(b.values())), (b, a, min(a.values()))):
        for token, value in here.items():
            assert value == pytest.approx(there.get(token, floor), abs=served.close)


async def shown(served: Served, prefix: Prefix, k: int, n: int) -> tuple[Position, ...]:
    """The positions of a draft; none where the server prints all of a position alike."""
    upstream = served.connect(k)
    try:
        return (await upstream.draft(prefix, n, Budget(3))).positions
    except UpstreamMalformed:
        if served.record.value("named_by") != "text":
            raise
        return ()
    finally:
        await upstream.close()


async def alone(upstream: Upstream, prefix: Prefix) -> Position:
    (position, *_) = (await upstream.draft(prefix, 1, Budget(3))).positions
    return position


def test_it_can_be_steered(served: Served) -> None:
    record = served.record
    assert record.reason == ""
    assert record.tier in ("A", "B", "C")
    assert record.calls <= MOST_CALLS


async def test_candidates_are_the_vocabularys(served: Served, upstream: Upstream) -> None:
    for prefix in prefixes(served):
        position = await alone(upstream, prefix)
        ids = [c.id for c in position.candidates]
        assert len(set(ids)) == len(ids) > 0
        for c in position.candidates:
            assert c.special is not None or c.token == served.vocabulary.tokens[c.id or 0]


@pytest.mark.parametrize("k", [1, 2, 5, 20])
async def test_k_is_granted_and_never_exceeded(served: Served, k: int) -> None:
    granted, seen = min(k, served.record.value("k_limit")), 0
    for prefix in prefixes(served):
        for position in await shown(served, prefix, k, 4):
            count, seen = len(position.candidates), seen + 1
            assert count <= granted
            # What prints alike cannot be told apart.
            assert count == granted or served.record.value("named_by") == "text"
    if not seen:
        pytest.skip(f"it names tokens by their text, and the best {k} are all printed alike")


async def test_what_is_hidden_is_bounded(served: Served, upstream: Upstream) -> None:
    """Against a longer list: hidden tokens are below the floor, and no heavier than hidden."""
    few = served.connect(max(1, min(20, served.record.value("k_limit")) // 3))
    for prefix in prefixes(served):
        short, long = await alone(few, prefix), await alone(upstream, prefix)
        rest = {i: v for i, v in by_id(long).items() if i not in by_id(short)}
        assert all(value <= short.floor + served.close for value in rest.values())
        assert sum(map(math.exp, rest.values())) <= short.hidden + served.close
        shown = sum(math.exp(c.logprob) for c in short.candidates)
        assert 1 - served.close <= shown + short.hidden <= 1 + served.close
    await few.close()


async def test_a_draft_is_its_positions_one_by_one(served: Served, upstream: Upstream) -> None:
    longest = 0
    for prefix in prefixes(served):
        draft, at = await upstream.draft(prefix, 6, Budget(3)), prefix
        for position in draft.positions:
            assert_alike(position, await alone(upstream, at), served)
            if position.drafted is None:
                break
            at = at.extend(position.drafted)
        longest = max(longest, len(draft.positions))
    assert longest > 1, "no draft was longer than one: a weak test"


async def test_a_stream_is_the_draft(served: Served, upstream: Upstream) -> None:
    if not upstream.capabilities.streams:
        pytest.skip("its streams carry no log-probabilities, or are no use")
    for prefix in prefixes(served):
        whole = await upstream.draft(prefix, 6, Budget(3))
        async with aclosing(upstream.stream(prefix, 6, Budget(3))) as pieces:
            drafts: list[Draft] = [piece async for piece in pieces]
        streamed = [position for draft in drafts for position in draft.positions]
        assert 0 < len(streamed) <= len(whole.positions)
        # Of texts and chats, what is never printed cannot be told from what is left out.
        assert len(streamed) == len(whole.positions) or upstream.capabilities.continues != "ids"
        for one, other in zip(streamed, whole.positions, strict=False):
            assert_alike(one, other, served)


async def test_scores_are_what_is_shown(served: Served, upstream: Upstream) -> None:
    if upstream.capabilities.scoring is None:
        pytest.skip("it scores no chosen tokens")
    for prefix in prefixes(served):
        shown = by_id(await alone(upstream, prefix))
        whole = [i for i in shown if i is not None and is_whole(served, i)][-3:]
        scores, _ = await upstream.score(prefix, whole, Budget(9))
        assert set(scores) == set(whole)
        for token, value in scores.items():
            assert value == pytest.approx(shown[token], abs=served.close)


def is_whole(served: Served, token: int) -> bool:
    """Tokens that end inside a character cannot be scored everywhere; END is no text."""
    spelt = served.vocabulary.tokens[token]
    return spelt.isascii() and token not in served.vocabulary.end


async def test_the_end_is_among_the_candidates(served: Served) -> None:
    if not served.record.value("end_visible"):
        pytest.skip("it hides the end")
    upstream = served.connect(served.record.value("k_limit"))
    found = set()
    for prefix in prefixes(served):
        position = await alone(upstream, prefix)
        found |= {c.id for c in position.candidates if c.special == END}
    await upstream.close()
    if not found and served.record.value("k_limit") < len(served.vocabulary.tokens) // 2:
        pytest.skip("the end was likely nowhere: more candidates, or other texts, would show it")
    assert found <= served.vocabulary.end
    assert found


async def test_a_prefix_may_end_inside_a_character(served: Served, upstream: Upstream) -> None:
    """The next token is then told by its own bytes, not by those of the whole character."""
    words = served.vocabulary
    if upstream.capabilities.continues != "ids":
        pytest.skip("it is sent text, which never ends inside a character")
    ids = list(words.encode("Well 🙂🚢東".encode()))
    inside = [
        n for n in range(1, len(ids)) if not is_text(b"".join(words.tokens[i] for i in ids[:n]))
    ]
    if not inside:
        pytest.skip("its tokenizer has no parts of characters in that text")
    for n in inside:
        position = await alone(upstream, Prefix.of([*words.start, *ids[:n]]))
        assert all(c.token == words.tokens[c.id or 0] for c in position.candidates if not c.special)
