"""Several choices from one request: what is sent, paid and handed out, on a real socket."""

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import replace
from typing import Any

import pytest

from adapter.budget import Budget, RequestTotal
from adapter.candidates import Ending, Step, Usage
from adapter.decoding import Frozen, decode
from adapter.errors import UpstreamMalformed, UpstreamRefused
from adapter.price import Price
from adapter.request import Sampling
from adapter.upstream import Endpoint, connect
from tests.adapter.upstream.vocabularies import BYTES
from tests.support.generations import generation
from tests.support.scripted import Reply, Scripted, classic, scripted
from tests.support.until import until

PROMPT = (5, 6, 7)
PRICE = Price(input=1.0, output=4.0, cached=1.0)
CHOICES, LENGTH = 3, 2
Hosted = tuple[Scripted, Frozen]
ODDS = {f"token_id:{ord(letter) + 2}": -1.25 for letter in "abc"}


def drew(letters: str, index: int | None = 0) -> Any:
    """A choice that drew these letters, each with the same odds."""
    steps = [{f"token_id:{ord(x) + 2}": -1.25} | ODDS for x in letters]
    return classic(*steps, text=letters)["choices"][0] | {"index": index}


def answer(*choices: Any, made: int = CHOICES * LENGTH) -> Reply:
    usage = {"prompt_tokens": len(PROMPT), "completion_tokens": made}
    return Reply(body={"choices": list(choices), "usage": usage})


THREE = answer(drew("ab", 0), drew("ba", 1), drew("cc", 2))
TWO = answer(drew("ab", 0), drew("ba", 1), made=2 * LENGTH)
ONE = answer(drew("ab"), made=LENGTH)


@asynccontextmanager
async def hosted(*replies: Reply, several: bool | None = True) -> AsyncIterator[Hosted]:
    """What a request sees of an upstream that answers so."""
    with scripted(*replies) as script:
        endpoint = Endpoint(script.base_url, "m")
        upstream = connect(endpoint, api="completions", vocabulary=BYTES, top_logprobs=3)
        upstream.capabilities = replace(upstream.capabilities, several=several)
        try:
            yield script, Frozen(upstream)
        finally:
            await upstream.close()


async def written(
    frozen: Frozen, budget: Budget, choice: int, steps: int = 99
) -> tuple[str, Usage]:
    """What a choice says, or the beginning of it, and what it used."""
    sampling = Sampling(max_tokens=LENGTH, temperature=1.0)
    one = generation(
        PROMPT, vocabulary=BYTES, sampling=sampling, choice=choice, choices=CHOICES, lookahead=2
    )
    said, usage = "", Usage()
    async with aclosing(decode(frozen, one, budget)) as events:
        async for event in events:
            if isinstance(event, Step):
                said += event.token.decode()
                steps -= 1
            elif isinstance(event, Ending):
                usage = event.usage
            if not steps:
                break
    return said, usage


def script_is_asked(script: Scripted) -> Callable[[], Awaitable[bool]]:
    async def asked() -> bool:
        return bool(script.requests)

    return asked


async def test_one_request_asks_for_all_and_is_billed_once() -> None:
    money = RequestTotal(10**9)
    budget = Budget(9, PRICE, {"money": money})
    async with hosted(THREE) as (script, frozen):
        told = [await written(frozen, budget, choice) for choice in range(CHOICES)]
    assert [said for said, _ in told] == ["ab", "ba", "cc"]
    (asked,) = script.requests
    assert (asked["n"], asked["max_tokens"], asked["temperature"]) == (CHOICES, LENGTH, 1)
    assert [usage for _, usage in told] == [Usage(1, 3, 0, 6), Usage(), Usage()]
    assert budget.calls == 1
    assert budget.bill.nanos == PRICE.nanos(Usage(1, 3, 0, 6))
    assert not budget.bill.estimated


@pytest.mark.parametrize(
    ("tokens", "asked"), [(6, (3, 2)), (5, (2, 2)), (3, (1, 2)), (2, (1, 2)), (1, (1, 1))]
)
async def test_all_choices_are_reserved_before_they_are_asked_for(tokens, asked) -> None:
    """Where money is short fewer are asked for, and then a shorter one."""
    money = RequestTotal(PRICE.nanos(Usage(1, len(PROMPT), 0, tokens)))
    budget = Budget(9, PRICE, {"money": money})
    async with hosted(replace(THREE, late=0.2)) as (script, frozen):
        under_way = asyncio.create_task(written(frozen, budget, 0))
        await until(script_is_asked(script))
        assert not await money.take(1)
        under_way.cancel()
        await asyncio.gather(under_way, return_exceptions=True)
    (body,) = script.requests
    assert (body["n"], body["max_tokens"]) == asked


@pytest.mark.parametrize("came", [1, 2])
async def test_who_got_no_draft_asks_for_himself(came: int) -> None:
    """As where `n` is ignored: with what the others were shown, and one choice a request."""
    few = answer(*[drew("ab", index) for index in range(came)], made=came * LENGTH)
    budget = Budget(9)
    async with hosted(few, ONE) as (script, frozen):
        told = [await written(frozen, budget, choice) for choice in range(CHOICES)]
    assert [body["n"] for body in script.requests] == [3, *[1] * (script.calls - 1)]
    assert [said for said, _ in told[:came]] == ["ab"] * came
    assert all(len(said) == LENGTH for said, _ in told)
    assert sum((usage for _, usage in told), Usage()).calls == script.calls == budget.calls


BROKEN = {
    "one without log-probabilities": answer(drew("ab"), drew("ba", 1) | {"logprobs": None}),
    "one that is no choice": answer(drew("ab"), 7),
    "one more than asked for": answer(*[drew("ab", i) for i in range(CHOICES + 1)]),
    "two in one place": answer(drew("ab"), drew("ab")),
    "one in no place": answer(drew("ab"), drew("ba", CHOICES)),
    "an odd place": answer(drew("ab"), drew("ba") | {"index": [1]}),
    "none": answer(),
}


@pytest.mark.parametrize("name", BROKEN)
async def test_a_malformed_choice_is_an_error_for_all(name: str) -> None:
    """To leave it out would be to draw anew because of what was drawn."""
    budget = Budget(9)
    async with hosted(BROKEN[name]) as (script, frozen):
        for choice in range(CHOICES):
            with pytest.raises(UpstreamMalformed):
                await written(frozen, budget, choice)
    assert budget.calls == script.calls == CHOICES


async def test_choices_may_come_without_places() -> None:
    async with hosted(answer(drew("ab", None), drew("ba", None))) as (_, frozen):
        assert (await written(frozen, Budget(9), 0))[0] == "ab"


async def test_a_refusal_is_an_error_as_for_a_lone_choice() -> None:
    budget = Budget(9)
    async with hosted(Reply(400, {"error": {"message": "no"}}), TWO) as (script, frozen):
        with pytest.raises(UpstreamRefused):
            await written(frozen, budget, 0)
        assert (await written(frozen, budget, 1))[0] == "ab"
    assert [body["n"] for body in script.requests] == [3, 2]


async def test_a_choice_that_is_left_leaves_the_others_theirs() -> None:
    budget = Budget(9)
    async with hosted(THREE) as (script, frozen):
        assert (await written(frozen, budget, 0, steps=1))[0] == "a"
        assert [(await written(frozen, budget, choice))[0] for choice in (1, 2)] == ["ba", "cc"]
    assert script.calls == 1


async def test_who_is_cancelled_while_it_asks_leaves_the_asking_to_the_next() -> None:
    budget = Budget(9)
    async with hosted(Reply(silent=True), TWO) as (script, frozen):
        first = asyncio.create_task(written(frozen, budget, 0))
        await until(script_is_asked(script))
        second = asyncio.create_task(written(frozen, budget, 1))
        first.cancel()
        assert (await second)[0] == "ab"
        assert (await written(frozen, budget, 2))[0] == "ba"
    assert [body["n"] for body in script.requests] == [3, 2]


async def test_nothing_is_asked_once_nobody_waits() -> None:
    budget = Budget(9)
    async with hosted(THREE) as (script, frozen):
        budget.stop()
        with pytest.raises(asyncio.CancelledError):
            await written(frozen, budget, 0)
    assert script.calls == 0


@pytest.mark.parametrize(
    "sampling",
    [Sampling(LENGTH, 0.0), Sampling(LENGTH, 1.0, seed=1)],
    ids=["greedy", "seeded"],
)
async def test_what_is_shared_anyhow_is_not_asked_for_together(sampling: Sampling) -> None:
    async with hosted(ONE) as (script, frozen):
        one = generation(PROMPT, vocabulary=BYTES, sampling=sampling, choices=CHOICES, lookahead=2)
        async for _ in decode(frozen, one, Budget(9)):
            pass
    assert {body["n"] for body in script.requests} == {1}


async def test_where_nothing_is_known_each_asks_for_itself() -> None:
    budget = Budget(9)
    async with hosted(ONE, several=None) as (script, frozen):
        for choice in range(CHOICES):
            await written(frozen, budget, choice)
    assert {body["n"] for body in script.requests} == {1}
