"""Upstreams that break off, stall, flood, lie or stay down, on a real socket."""

import asyncio
import gzip
import json
import time
from collections.abc import Iterator
from contextlib import aclosing, suppress
from typing import Any

import pytest

from adapter.budget import Budget, RequestTotal
from adapter.candidates import Draft, Position
from adapter.errors import (
    MoneyExceeded,
    UpstreamError,
    UpstreamMalformed,
    UpstreamTimeout,
    UpstreamUnavailable,
)
from adapter.prefix import Prefix
from adapter.price import Price
from adapter.upstream import Endpoint, connect
from adapter.upstream.breaker import Breaker
from adapter.upstream.transport import Answer, Transport
from tests.adapter.upstream.test_completions import sound
from tests.adapter.upstream.test_retries import Naps
from tests.adapter.upstream.vocabularies import BYTES, Allowed
from tests.support.scripted import Reply, Scripted, classic, events, scripted

PREFIX = Prefix.of([5, 6, 7])
GOOD = Reply(body=classic({"token_id:99": -0.1, "token_id:100": -3.0}))
PIECE = classic({"token_id:99": -0.1, "token_id:100": -3.0}, text="a", finish="") | {"usage": None}
LAST = classic({"token_id:99": -0.1, "token_id:100": -3.0}, text="a") | {"usage": None}
SPENT = {"choices": [], "usage": {"prompt_tokens": 3, "completion_tokens": 3}}
PRICE = Price(input=1.0, output=4.0, cached=1.0)


def transport(script: Scripted, timeout: float = 30.0, **limits: Any) -> Transport:
    return Transport(Endpoint(script.base_url, "m", timeout=timeout, **limits), sleep=Naps())


async def ask(script: Scripted, budget: Any = None, limit: float = 30.0, n: int = 3) -> list[Any]:
    """The events of a stream, and the error that ended it."""
    got: list[Any] = []
    sender = transport(script, limit)
    try:
        async for answer in sender.stream(PREFIX.ids, {"max_tokens": n}, budget or Allowed()):
            got.append(answer)
    except (UpstreamError, MoneyExceeded) as error:
        got.append(error)
    finally:
        await sender.close()
    return got


def cuts() -> Iterator[tuple[int, int]]:
    """Bytes after which a stream is cut, and how many whole events those are."""
    blocks = [b"data: %b\n\n" % json.dumps(body).encode() for body in (PIECE, PIECE, LAST, SPENT)]
    at = 0
    for number, block in enumerate([*blocks, b"data: [DONE]\n\n"]):
        for inside in (0, 1, len(block) // 2, len(block) - 1):
            yield at + inside, number
        at += len(block)


@pytest.mark.parametrize("promised", [True, False], ids=["cut", "clean close"])
async def test_a_stream_cut_anywhere_is_an_error_and_paid_as_far_as_it_came(promised: bool) -> None:
    whole = events(PIECE, PIECE, LAST, SPENT)
    for at, seen in cuts():
        reply = Reply(body=whole.body, headers=whole.headers, cut=at)
        if not promised:
            reply = Reply(body=whole.body[:at], headers=whole.headers)
        budget = Allowed()
        with scripted(reply) as script:
            *got, error = await ask(script, budget)
        assert [answer.body for answer in got] == [PIECE, PIECE, LAST, SPENT][:seen]
        assert isinstance(error, UpstreamUnavailable)
        assert script.calls == budget.taken == (1 if seen else 3)
        told = [attempt.usage and attempt.usage.completion_tokens for attempt in budget.attempts]
        assert told == ([min(seen + 1, 3)] if seen else [None] * 3)
        assert [attempt.estimated for attempt in budget.attempts] == [seen < 4] * len(told)


def soundly(positions: tuple[Position, ...]) -> bool:
    return bool(positions) and all(map(sound, positions))


def entry(values: list[Any], key: Any = "token_id:99", first: Any = -0.1) -> bytes:
    """A classic answer whose candidates have the values, written as they are."""
    shown = ",".join(f'"token_id:{i + 99}":{value}' for i, value in enumerate(values))
    logprobs = f'"tokens":["{key}"],"token_logprobs":[{first}],"top_logprobs":[{{{shown}}}]'
    return b'{"choices":[{"text":"","finish_reason":"length","logprobs":{%b}}]}' % logprobs.encode()


CLASSIC: dict[str, tuple[bytes, int]] = {
    "NaN": (entry([-0.5, "NaN"]), 1),
    "infinities": (entry([-0.5, "Infinity", "-Infinity", "1e999", "-1e999"]), 1),
    "sentinel": (entry([-0.5, -9999.0]), 1),
    "null": (entry([-0.5, "null"]), 1),
    "empty": (entry([]), 0),
    "nothing but junk": (entry(["NaN", "null", '"x"', "[]", "true"]), 0),
    "fewer than k": (entry([-0.5]), 1),
    "more than k": (entry([-3.0] * 9), 5),
    "unsorted": (entry([-3.0, -0.5, -4.0, -2.0]), 4),
    "positive": (entry([0.3]), 1),
    "rounding": (entry([-0.0001, -4.8]), 2),
    "no distribution": (entry([-0.1, -0.1]), 0),
    "sampled token absent": (entry([-0.5, -2.0], key="token_id:140", first=-4.0), 2),
    "sampled token nameless": (entry([-0.5, -2.0], key="token_id:99999"), 2),
    "sampled token without a number": (entry([-0.5, -2.0], first="NaN"), 2),
    "a number of 400 digits": (entry([-0.5, "9" * 400]), 1),
    "a number of 5000 digits": (entry([-0.5, "9" * 5000]), 0),
    "invalid UTF-8": (entry([-0.5]).replace(b"text", b"te\xff\xfext"), 0),
    "half a character": (entry([-0.5]).replace(b'"text":""', b'"text":"\\ud800"'), 0),
    "several choices": (entry([-0.5]).replace(b"[{", b'[{"index":1},{', 1), 0),
    "another choice": (entry([-0.5]).replace(b"[{", b'[{"index":1,', 1), 0),
    "no choices": (b'{"choices":[]}', 0),
    "missing": (b'{"choices":[{"text":"a","finish_reason":"length"}]}', 0),
    "uneven": (entry([-0.5]).replace(b'"tokens":[', b'"tokens":["token_id:99",'), 0),
    "10 MB": (entry([-0.5]) + b" " * 10**7, 0),
    "deep": (b'{"choices":' + b"[" * 10_000, 0),
    "deep and closed": (b'{"a":' + b"[" * 10_000 + b"]" * 10_000 + b"}", 0),
    "no object": (b"[1]", 0),
}


@pytest.mark.reliability("D1")
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
@pytest.mark.parametrize("case", CLASSIC)
async def test_any_answer_is_a_sound_position_or_a_typed_error(case: str, streamed: bool) -> None:
    body, candidates = CLASSIC[case]
    found = await read(body, "completions", streamed)
    if isinstance(found, Draft):
        assert soundly(found.positions), case
        assert (len(found.positions[0].candidates), found.positions[1:]) == (candidates, ())
    else:
        assert (type(found), candidates) == (UpstreamMalformed, 0)


def shown(*entries: str) -> bytes:
    """A llama.cpp answer whose candidates are written as they are."""
    top = ",".join(entries)
    content = entries[0][:-1] + f',"top_logprobs":[{top}]}}' if entries else ""
    choice = f'{{"text":"a","finish_reason":"length","logprobs":{{"content":[{content}]}}}}'
    return f'{{"choices":[{choice}]}}'.encode()


def one(token: Any, spelt: Any, value: Any = -0.5) -> str:
    return f'{{"id":{token},"token":"a","bytes":{spelt},"logprob":{value}}}'


NATIVE: dict[str, tuple[bytes, int]] = {
    "NaN": (shown(one(99, "[97]"), one(100, "[98]", "NaN")), 1),
    "same text, other bytes": (shown(one(197, "[195]"), one(198, "[196]", -2.0)), 2),
    "bytes null": (shown(one(99, "null"), one(100, "null", -2.0)), 2),
    "bytes above 255": (shown(one(99, "[97]"), one(100, "[256]", -2.0)), 0),
    "bytes that are none": (shown(one(99, "[97]"), one(100, '["x"]', -2.0)), 0),
    "other bytes": (shown(one(99, "[97]"), one(100, "[99]", -2.0)), 0),
    "repeats": (shown(one(99, "[97]"), one(99, "[97]"), one(99, "[97]", -2.0)), 1),
    "no id": (shown(one('"x"', "[97]")), 0),
    "empty": (shown(), 0),
    "no distribution": (shown(one(99, "[97]", -0.1), one(100, "[98]", -0.1)), 0),
    "positive": (shown(one(99, "[97]", 0.3)), 1),
}


@pytest.mark.reliability("D1")
@pytest.mark.parametrize("case", NATIVE)
async def test_any_answer_of_llama_cpp_is_sound_or_a_typed_error(case: str) -> None:
    body, candidates = NATIVE[case]
    found = await read(body, "llama.cpp", streamed=False)
    if isinstance(found, Draft):
        assert soundly(found.positions), case
        assert len(found.positions[0].candidates) == candidates
    else:
        assert (type(found), candidates) == (UpstreamMalformed, 0)


async def read(body: bytes, api: Any, streamed: bool) -> Draft | Exception:
    stream = {"content-type": "text/event-stream"}
    reply = Reply(body=body)
    if streamed:
        reply = Reply(body=b"data: %b\n\ndata: [DONE]\n\n" % body, headers=stream)
    with scripted(reply) as script:
        upstream = connect(
            Endpoint(script.base_url, "m"), api=api, vocabulary=BYTES, top_logprobs=5
        )
        try:
            if not streamed:
                return await upstream.draft(PREFIX, 1, Allowed())
            pieces = [piece async for piece in upstream.stream(PREFIX, 1, Allowed())]
            return Draft(
                tuple(p for piece in pieces for p in piece.positions), None, pieces[0].usage
            )
        except UpstreamError as error:
            return error
        finally:
            await upstream.close()


@pytest.mark.parametrize(
    "reply",
    [
        Reply(silent=True),
        Reply(body=GOOD.body, stall=0),
        Reply(body=GOOD.body, stall=40),
        Reply(body=GOOD.body, drip=0.05),
    ],
    ids=["silent", "head alone", "semi-silent", "drip"],
)
@pytest.mark.parametrize("streamed", [False, True], ids=["whole", "stream"])
async def test_deadlines_hold(reply: Reply, streamed: bool) -> None:
    start = time.monotonic()
    headers = {"content-type": "text/event-stream"} if streamed else {}
    body = b"data: %b\n\n" % reply.payload if streamed and reply.payload else reply.payload
    slow = Reply(200, body, headers, reply.silent, None, reply.stall, drip=reply.drip)
    with scripted(slow) as script:
        if streamed:
            (error,) = await ask(script, limit=0.8)
        else:
            sender = transport(script, 0.3)
            with pytest.raises(UpstreamTimeout) as caught:
                await sender.complete(PREFIX.ids, {"max_tokens": 1}, Allowed())
            error = caught.value
            await sender.close()
        assert (type(error), script.calls) == (UpstreamTimeout, 1)
    assert time.monotonic() - start < 9.0  # a guard against hanging, at ten times the goal


async def test_a_stream_that_never_ends_is_cut_off() -> None:
    flood = Reply(
        body=(b"data: {}" + b" " * 1000 + b"\n\n") * 2000,
        headers={"content-type": "text/event-stream"},
    )
    with scripted(flood) as script:
        *got, error = await ask(script)
    assert (type(error), script.calls) == (UpstreamMalformed, 1)
    assert 500 < len(got) < 2000


@pytest.mark.parametrize("status", [200, 400, 500])
async def test_what_unfolds_beyond_all_measure_is_not_read(status: int) -> None:
    """A hundred megabytes come as a hundred kilobytes."""
    packed = Reply(status, gzip.compress(b" " * 10**8), {"content-encoding": "gzip"})
    with scripted(packed) as script:
        sender = transport(script)
        with pytest.raises(UpstreamMalformed, match="more than was asked for"):
            await sender.complete(PREFIX.ids, {"max_tokens": 1}, Allowed())
        await sender.close()
    assert script.calls == 1


async def test_no_more_calls_than_allowed_are_under_way() -> None:
    with scripted(Reply(body=GOOD.body, late=0.02)) as script:
        sender = transport(script, max_concurrency=4)
        calls = (sender.complete([i], {"max_tokens": 1}, Allowed()) for i in range(40))
        answers = await asyncio.gather(*calls)
        await sender.close()
    assert (len(answers), script.calls, script.most) == (40, 40, 4)


async def test_who_waits_in_line_has_nothing_reserved_and_is_no_failure() -> None:
    with scripted(events(PIECE, PIECE, LAST, SPENT)) as script:
        sender = transport(script, 0.3, max_concurrency=1)
        budgets = [Allowed() for _ in range(9)]
        done: list[Any] = []
        async with aclosing(sender.stream([1], {"max_tokens": 3}, Allowed())) as under_way:
            await anext(under_way)  # and no more is asked of it: the line does not move
            for _ in range(2):  # a breaker that counted the first ones would refuse the next
                asked = (sender.complete([1], {"max_tokens": 1}, budget) for budget in budgets)
                done += await asyncio.gather(*asked, return_exceptions=True)
        assert {type(error) for error in done} == {UpstreamTimeout}
        assert (script.calls, sum(budget.taken for budget in budgets)) == (1, 0)
        script.replies[:] = [GOOD]
        for _ in range(5):
            assert (await sender.complete([1], {"max_tokens": 1}, Allowed())).calls == 1
        await sender.close()


async def test_an_upstream_that_stays_down_is_left_alone_and_used_again_when_it_is_back() -> None:
    with scripted(Reply(503)) as script:
        sender, now = transport(script), [0.0]
        sender._breaker = Breaker("the upstream", clock=lambda: now[0])  # a busy machine is slow
        budget, refused = Allowed(), 0
        for _ in range(40):
            try:
                await sender.complete([1], {"max_tokens": 1}, budget)
            except UpstreamUnavailable as error:
                refused += error.retry_after is not None
        assert script.calls == budget.taken == 5
        assert refused >= 30
        script.replies[:] = [GOOD]
        with pytest.raises(UpstreamUnavailable):
            await sender.complete([1], {"max_tokens": 1}, Allowed())
        now[0] += 1.0
        for _ in range(10):
            await sender.complete([1], {"max_tokens": 1}, Allowed())
        assert script.calls == 5 + 10
        await sender.close()


@pytest.mark.parametrize("status", [400, 401, 404, 422])
async def test_refusals_do_not_open_it(status: int) -> None:
    with scripted(Reply(status)) as script:
        sender = transport(script)
        for _ in range(9):
            with pytest.raises(UpstreamError):
                await sender.complete([1], {"max_tokens": 1}, Allowed())
        await sender.close()
    assert script.calls == 9


def priced(cap: int, calls: int = 99) -> tuple[Budget, RequestTotal]:
    total = RequestTotal(cap)
    return Budget(calls, PRICE, {"limits.money_per_request": total}), total


async def left(total: RequestTotal, cap: int) -> int:
    """What a total still allows: as much as can be taken, found by halving."""
    low, high = 0, cap
    while low < high:
        middle = (low + high + 1) // 2
        if await total.take(middle):
            await total.give(middle)
            low = middle
        else:
            high = middle - 1
    return low


@pytest.mark.reliability("C3")
@pytest.mark.parametrize(
    ("reply", "cost", "estimated"),
    [
        (GOOD, 7_000, False),
        (Reply(body={"choices": [{"text": "a"}]}), 11_000, True),
        (Reply(body={"usage": {"prompt_tokens": 3}}), 11_000, True),
        (Reply(body={"usage": {"prompt_tokens": 3, "completion_tokens": "1"}}), 11_000, True),
        (Reply(body={"usage": {"prompt_tokens": 3, "completion_tokens": 10**30}}), 11_000, True),
        (Reply(body=b"<html>"), 11_000, True),
        (Reply(body=GOOD.body, cut=20), 33_000, True),
        (Reply(gone="closed"), 33_000, True),
        (Reply(gone="reset"), 33_000, True),
        (Reply(body=b"{}", headers={"content-encoding": "gzip"}), 33_000, True),
        (Reply(500, b"{}", cut=1), 33_000, True),
        (Reply(400, b"{}", cut=1), 0, False),
        (Reply(silent=True), 11_000, True),
        (Reply(500), 33_000, True),
        (Reply(400), 0, False),
        (Reply(429), 0, False),
    ],
)
async def test_what_each_end_of_a_call_costs(reply: Reply, cost: int, estimated: bool) -> None:
    """3 prompt tokens, up to 2 more: 11,000 nano-units are reserved for each attempt."""
    budget, total = priced(100_000)
    with scripted(reply) as script:
        sender = transport(script, 0.5 if reply.silent else 30.0)
        with suppress(UpstreamError):
            await sender.complete(PREFIX.ids, {"max_tokens": 2}, budget)
        await sender.close()
    assert (budget.bill.nanos, budget.bill.estimated) == (cost, estimated)
    assert await left(total, 100_000) == 100_000 - cost


async def test_a_server_that_is_not_there_costs_nothing() -> None:
    with scripted(GOOD) as script:
        pass
    budget, _ = priced(100_000)
    sender = transport(script)
    with pytest.raises(UpstreamUnavailable):
        await sender.complete(PREFIX.ids, {"max_tokens": 2}, budget)
    await sender.close()
    assert (budget.bill.nanos, budget.bill.estimated) == (0, False)


async def test_a_cancelled_call_is_spent_as_reserved() -> None:
    budget, _ = priced(100_000)
    with scripted(Reply(silent=True)) as script:
        sender = transport(script)
        task = asyncio.create_task(sender.complete(PREFIX.ids, {"max_tokens": 2}, budget))
        while not script.calls:  # noqa: ASYNC110
            await asyncio.sleep(0.01)
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)
        await sender.close()
    assert (budget.bill.nanos, budget.bill.estimated) == (11_000, True)


def stream_of(tokens: int, *ends: Any) -> Reply:
    return events(*[PIECE] * tokens, *ends)


@pytest.mark.parametrize("ends", [(), (SPENT | {"usage": {"prompt_tokens": 3,
                                                        "completion_tokens": 40}},)])  # fmt: skip
async def test_a_stream_reserves_in_steps_and_settles_at_its_end(ends: tuple[Any, ...]) -> None:
    budget = Allowed()
    with scripted(stream_of(40, *ends)) as script:
        sender, reserved = transport(script), []
        async for _ in sender.stream(PREFIX.ids, {"max_tokens": 100}, budget):
            reserved.append(budget.attempts[0].tokens)
        await sender.close()
    (attempt,) = budget.attempts
    assert reserved[0] == 16
    assert reserved[-1] < 64
    assert all(there > came for came, there in enumerate(reserved[:40]))
    assert attempt.usage is not None
    assert attempt.usage.completion_tokens == 40
    assert attempt.estimated == (not ends)


@pytest.mark.parametrize("paid", [16, 20, 31])
async def test_a_stream_is_closed_where_the_next_token_cannot_be_had(paid: int) -> None:
    """The prompt and so many tokens can be paid, and half a one."""
    cap = 3_000 + paid * 4_000 + 2_000
    budget, total = priced(cap)
    with scripted(stream_of(90)) as script:
        *got, error = await ask(script, budget, n=100)
    assert isinstance(error, MoneyExceeded)
    assert (len(got), script.calls) == (paid, 1)
    assert await left(total, cap) == 2_000


@pytest.mark.parametrize("paid", [1, 5, 15])
async def test_a_stream_whose_beginning_cannot_be_paid_is_asked_for_shorter(paid: int) -> None:
    cap = 3_000 + paid * 4_000 + 2_000
    budget, total = priced(cap)
    with scripted(stream_of(paid)) as script:
        got = await ask(script, budget, n=100)
    assert ([asked["max_tokens"] for asked in script.requests], len(got)) == ([paid], paid)
    assert await left(total, cap) == 2_000


async def test_a_stream_that_is_left_is_paid_as_received_and_a_chunk() -> None:
    budget, _ = priced(10**9)
    with scripted(stream_of(30)) as script:
        sender = transport(script)
        async with aclosing(sender.stream(PREFIX.ids, {"max_tokens": 50}, budget)) as answers:
            for _ in range(4):
                assert isinstance(await anext(answers), Answer)
        await sender.close()
    assert (budget.bill.nanos, budget.bill.estimated) == (3_000 + 5 * 4_000, True)
