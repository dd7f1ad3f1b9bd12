"""The loop at its edges, on positions written by hand."""

import math

import pytest

from adapter.candidates import END, Candidate, Draft, Position, Usage
from adapter.decoding import Pace
from adapter.errors import (
    BadRequest,
    BudgetExceeded,
    ContextTooLong,
    UpstreamMalformed,
    UpstreamTimeout,
)
from adapter.request import Sampling
from adapter.upstream.capabilities import COMPLETIONS
from tests.support import generations
from tests.support.generations import generation
from tests.support.synthetic import Synthetic, vocabulary_of_size
from tests.support.synthetic_pair import SyntheticReader

CALL = Usage(calls=1, prompt_tokens=3, completion_tokens=1)


def position(*tokens, hidden=0.1):
    """Candidates best first; END by its name."""
    candidates = [
        Candidate(
            b"" if t == END else t,
            math.log(0.5**i * 0.4),
            id=ord(t[:1]) if t != END else 0,
            special=END if t == END else None,
        )
        for i, t in enumerate(tokens)
    ]
    return Position(tuple(candidates), candidates[0], hidden)


class Script:
    """An upstream that gives what it is told to, and keeps the prefixes it was asked at."""

    capabilities = COMPLETIONS

    def __init__(self, *answers):
        self.answers = list(answers)
        self.prefixes = []

    async def draft(self, prefix, n, budget, sampled=False):
        async with budget.call(len(prefix.ids), n):
            self.prefixes.append(prefix)
        answer = self.answers.pop(0)
        if isinstance(answer, Exception):
            raise answer
        positions, finish = (answer, None) if isinstance(answer, tuple) else ((), answer)
        return Draft(positions, finish, CALL)


class FailingReader:
    context_cut = False

    async def read(self, generated):
        raise ContextTooLong("the window is over")


async def run(script, reader=None, calls=99, alpha=0.0, **sampling):
    asked = Sampling(**{"max_tokens": 4, "temperature": 0.0, "seed": 1} | sampling)
    one = generation(sampling=asked, alpha=alpha, reader=reader)
    return await generations.run(script, one, calls)


async def test_the_prefix_grows_by_what_was_emitted():
    script = Script((position(b"a", b"b"),), (position(b"b"),), (position(END, b"a"),))
    steps, ending = await run(script)
    assert [p.generated for p in script.prefixes] == [(), (97,), (97, 98)]
    assert script.prefixes[2].text == b"ab"
    assert [s.special for s in steps] == [None, None, END]
    assert (ending.finish_reason, ending.usage) == ("stop", CALL + CALL + CALL)


async def test_an_end_the_upstream_hides_is_accepted_and_said():
    steps, ending = await run(Script((position(b"a"),), "stop"))
    assert [s.token for s in steps] == [b"a"]
    assert (ending.finish_reason, ending.flags) == ("stop", {"end_unsteered"})
    assert ending.usage.calls == 2


async def test_a_stop_string_ends_in_the_middle_of_a_token():
    steps, ending = await run(Script((position(b"a\n"),), (position(b"\nb"),)), stop=("\n\n",))
    assert "".join(s.text for s in steps) + ending.text == "a"
    assert ending.finish_reason == "stop"


async def test_max_tokens_flushes_what_was_held_back():
    steps, ending = await run(
        Script((position(b"a"),), (position(b"\n"),)), stop=("\n\n",), max_tokens=2
    )
    assert ("".join(s.text for s in steps), ending.text) == ("a", "\n")
    assert ending.finish_reason == "length"


async def test_a_cap_that_is_reached_later_ends_the_answer():
    steps, ending = await run(Script(*[(position(b"a"),)] * 3), calls=2)
    assert (len(steps), ending.finish_reason) == (2, "length")


async def test_a_cap_that_is_reached_at_once_is_an_error():
    with pytest.raises(BudgetExceeded, match="cap of 0"):
        await run(Script(), calls=0)


async def test_a_failure_of_either_side_is_raised_as_it_is():
    with pytest.raises(UpstreamTimeout):
        await run(Script(UpstreamTimeout("late")))
    with pytest.raises(ContextTooLong):
        await run(Script((position(b"a"),)), reader=FailingReader(), alpha=1.0)


async def test_a_step_is_certified_only_where_no_hidden_token_can_win():
    async def status(alpha=0.0, hidden=0.1, **sampling):
        steps, _ = await run(
            Script((position(b"a", hidden=hidden),)), alpha=alpha, max_tokens=1, **sampling
        )
        return steps[0].status

    assert await status() == "certified"
    assert await status(temperature=1.0) == "truncated"
    assert await status(frequency_penalty=1.0) == "certified"  # nothing was generated yet
    assert await status(logit_bias={97: -1.0}) == "certified"  # .4 / e is still above .1
    assert await status(logit_bias={97: -2.0}) == "truncated"
    assert await status(temperature=1.0, hidden=0.0) == "certified"
    assert await status(alpha=1.0, hidden=0.1) == "truncated"


async def test_wishes_and_bans_that_cannot_be_met_are_named():
    with pytest.raises(BadRequest, match="token 120, which the upstream did not show at step 1"):
        await run(Script((position(b"x"),), (position(b"a"),)), logit_bias={120: 5.0})
    with pytest.raises(BadRequest, match="forbids every candidate at step 0"):
        await run(Script((position(b"a", b"b"),)), logit_bias={97: -100.0, 98: -100.0})


@pytest.mark.parametrize("lookahead", [1, 4, "stream"])
async def test_an_upstream_that_brings_nothing_is_an_error_and_no_endless_loop(lookahead):
    class Mute(Script):
        async def stream(self, prefix, n, budget, sampled=False):
            for _ in ():
                yield

    mute = Mute(*[()] * 3)
    one = generation(sampling=Sampling(max_tokens=4, temperature=0.0), lookahead=lookahead)
    with pytest.raises(UpstreamMalformed, match="no token"):
        await generations.run(mute, one)


class Clock:
    """Time that only passes where a part says so."""

    now = 0.0

    def monotonic(self):
        return self.now


async def test_a_call_takes_until_the_pair_has_read_it(monkeypatch):
    """Else a drafted token seems to cost what the upstream takes, and drafts are too long."""
    clock, pace, size = Clock(), Pace(), 48
    monkeypatch.setattr("adapter.decoding.walk.time", clock)

    class Slow(Synthetic):
        async def draft(self, prefix, n, *rest):
            clock.now += 0.05 + 0.001 * n
            return await super().draft(prefix, n, *rest)

    class SlowReader(SyntheticReader):
        async def offsets(self, places):
            clock.now += 0.002 * len(places)
            return await super().offsets(places)

        async def whole(self, generated):
            clock.now += 1.0  # a token's own: it is paid whatever was drafted
            return await super().whole(generated)

    vocabulary = vocabulary_of_size(size)
    upstream = Slow(vocabulary, k=6, seed=1, end_visible=False)
    for lookahead in [1, 2, 3, 4, 8] * 8:
        one = generation(
            (7, 7, 5),
            vocabulary=vocabulary,
            sampling=Sampling(max_tokens=24, temperature=0.0),
            reader=SlowReader((7, 7, 5), size, strength=0.2),
            alpha=1.0,
            lookahead=lookahead,
            pace=pace,
        )
        await generations.run(upstream, one)
    assert pace.call_seconds == pytest.approx(0.05, rel=0.05)
    assert pace.token_seconds == pytest.approx(0.003, rel=0.05)


@pytest.mark.parametrize("expand", [0, 3, 40])
async def test_as_many_contenders_are_scored_as_were_asked_for(expand):
    upstream, asked = Synthetic(vocabulary_of_size(64), k=1, seed=1), []
    score = upstream.score

    async def counted(prefix, ids, budget):
        asked.append(len(ids))
        return await score(prefix, ids, budget)

    upstream.score = counted
    one = generation(
        (3, 4, 5),
        vocabulary=vocabulary_of_size(64),
        sampling=Sampling(max_tokens=2, temperature=1.0, seed=1),
        reader=SyntheticReader((3, 4, 5), 64, strength=2.0),
        alpha=1.0,
        expand=expand,
    )
    await generations.run(upstream, one)
    assert asked == [expand] * 2 * bool(expand)
