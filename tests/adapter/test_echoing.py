"""Given text scored as adapted, in front of a served transformers model."""

import math
from dataclasses import replace
from functools import partial
from itertools import takewhile

import httpx
import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

from adapter.candidates import Echo, Ending
from adapter.errors import BadRequest, UnsupportedParameter
from adapter.pair.reader import Reader
from adapter.request import Chat, Message, Request, Sampling
from tests.support.tiny import tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")

TEXT = "The harbour master kept a ledger of every ship. 東京の天気 naïve, and so ½ of it says"


@pytest.fixture(scope="module")
def build(build):
    return partial(build, cache={"url": "none"})


@pytest.fixture(scope="module")
def twin():
    """The adapted log-probabilities of whole vocabularies: fresh forwards in float64."""
    models = tiny()
    paths = (models.upstream, models.expert, models.antiexpert)
    loaded = [AutoModelForCausalLM.from_pretrained(p, dtype=torch.float64).eval() for p in paths]

    def rows(ids, alpha):
        """One row for each place behind an id."""
        with torch.inference_mode():
            logits = [model(torch.tensor([list(ids)])).logits[0].double() for model in loaded]
        base, expert, anti = (torch.log_softmax(row, -1) for row in logits)
        return torch.log_softmax(base + alpha * (expert - anti), -1).numpy()

    return rows


async def echoed(adapter, prompt=TEXT, max_tokens=0, choice=0, **more):
    """The echo, the steps behind it, and the ending."""
    sampling = Sampling(max_tokens=max_tokens, temperature=0.0)
    request = Request("tiny", prompt, sampling, **{"echo": "scores", "trace": "steps"} | more)
    job = adapter.prepare(request)
    echo, *steps, ending = [event async for event in adapter.run(job, choice)]
    assert isinstance(echo, Echo)
    assert isinstance(ending, Ending)
    return echo, steps, ending


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
async def test_with_the_whole_vocabulary_shown_a_text_is_scored_by_equation_1(build, twin, alpha):
    adapter = build(top_logprobs=10**6, pair={"dtype": "float64"})
    vocabulary = adapter._models["tiny"].vocabulary
    ids = vocabulary.encode(TEXT.encode())
    echo, _, ending = await echoed(adapter, alpha=alpha, shown=1)
    rows = twin(ids, alpha)
    assert len(ids) == 1 + len(echo.steps) > 25
    for j, step in enumerate(echo.steps):
        assert step.logprob == pytest.approx(rows[j][ids[j + 1]], abs=1e-5)  # a float32 server
        assert step.token == vocabulary.tokens[ids[j + 1]]
        assert step.status == "certified"
        assert (step.shown[0].logprob == step.logprob) == (rows[j].argmax() == ids[j + 1])
    assert echo.text == TEXT
    assert (ending.finish_reason, ending.usage.calls) == ("length", 1)


@pytest.mark.parametrize("k", [1, 5, 20])
async def test_the_true_number_lies_within_the_bounds(build, twin, k):
    """Of random texts, where the pair moves much and k entries show little."""
    adapter = build(top_logprobs=k, pair={"dtype": "float64"})
    random = np.random.default_rng(k)
    told, size = [], len(adapter._models["tiny"].vocabulary.tokens)
    for alpha in (0.5, 1.0, 2.0) * 4:
        ids = tuple(random.integers(8, min(size, 500), 90).tolist())
        echo, _, _ = await echoed(adapter, ids, alpha=alpha)
        rows = twin(ids, alpha)
        told += [(step, rows[j][ids[j + 1]]) for j, step in enumerate(echo.steps)]
    assert len(told) >= 1000
    for step, exact in told:
        least, most = step.bounds
        assert least - 1e-5 <= exact <= most + 1e-5  # a float32 server
        assert least - 1e-9 <= step.logprob <= most + 1e-9
    assert all(math.isfinite(step.bounds[0]) for step, _ in told)
    assert any(step.bounds[1] - step.bounds[0] > 0.01 for step, _ in told)


async def test_bounds_where_nothing_is_hidden_nothing_moves_or_nothing_is_known(build):
    for alpha, more in ((0.0, {"top_logprobs": 1}), (2.0, {"top_logprobs": 10**6})):
        echo, _, _ = await echoed(build(**more), alpha=alpha)
        for step in echo.steps:
            assert step.bounds == pytest.approx((step.logprob, step.logprob), abs=1e-3)
    echo, _, _ = await echoed(build(top_logprobs=5, tail="zero"), alpha=2.0)
    assert {step.bounds[0] for step in echo.steps} == {-math.inf}
    assert all(step.logprob <= step.bounds[1] < 0.0 for step in echo.steps)


async def test_a_long_text_is_not_scored_as_steered(build, server):
    adapter, before = build(limits={"echo_tokens": 20}), len(server.requests)
    with pytest.raises(BadRequest, match=r"up to 20 .*limits\.echo_tokens") as error:
        await echoed(adapter, tuple(range(50, 71)), alpha=1.0)
    assert (error.value.param, len(server.requests)) == ("prompt", before)
    for ids, more in ((range(50, 70), {"alpha": 1.0}), (range(50, 71), {"trace": "off"})):
        echo, _, _ = await echoed(adapter, tuple(ids), **{"alpha": 0.0} | more)
        assert len(echo.steps) == len(ids) - 1


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
async def test_a_given_token_has_the_numbers_it_has_when_it_is_generated(build, other):
    """The greedy answer, scored as a text: position by position the same."""
    adapter = build(other=other, top_logprobs=10)
    vocabulary = adapter._models["tiny"].vocabulary
    prompt = vocabulary.encode(b"The harbour master")
    for alpha in (0.0, 1.0, 2.0):
        sampling = Sampling(max_tokens=12, temperature=0.0)
        job = adapter.prepare(Request("tiny", prompt, sampling, alpha=alpha, trace="steps"))
        *steps, _ = [event async for event in adapter.run(job)]
        made = list(takewhile(lambda s: s.special is None, steps))
        ids = (*prompt, *(vocabulary.id_of(s.token) for s in made))
        echo, _, _ = await echoed(adapter, ids, alpha=alpha)
        for given, drawn in zip(echo.steps[len(prompt) - 1 :], made, strict=True):
            assert given.token == drawn.token
            assert given.offset == pytest.approx(drawn.offset, abs=2e-4)
            if drawn.rank is not None:
                assert given.upstream_logprob == pytest.approx(drawn.upstream_logprob, abs=2e-4)
                assert given.logprob == pytest.approx(drawn.logprob, abs=2e-3)


@pytest.mark.parametrize("k", [1, 5, 20])
async def test_without_steering_the_upstreams_own_numbers_come_back(build, server, k):
    adapter = build(top_logprobs=k)
    vocabulary = adapter._models["tiny"].vocabulary
    ids = vocabulary.encode(TEXT.encode())
    echo, _, _ = await echoed(adapter, alpha=0.0, trace="off")
    body = {"model": "tiny", "prompt": list(ids), "max_tokens": 1, "echo": True, "logprobs": k}
    async with httpx.AsyncClient() as http:
        answer = await http.post(f"{server.base_url}/completions", json=body)
    own = answer.json()["choices"][0]["logprobs"]["token_logprobs"]
    assert own[0] is None
    for step, theirs in zip(echo.steps, own[1:-1], strict=True):
        assert step.logprob == step.upstream_logprob == pytest.approx(theirs, abs=1e-9)
        assert step.offset == 0.0


async def test_imputing_comes_nearer_than_leaving_the_tail_as_it_is(build, twin):
    errors = {}
    for tail in ("impute", "zero"):
        adapter = build(top_logprobs=5, tail=tail, pair={"dtype": "float64"})
        ids = adapter._models["tiny"].vocabulary.encode(TEXT.encode())
        echo, _, _ = await echoed(adapter, alpha=2.0)
        rows = twin(ids, 2.0)
        exact = [rows[j][ids[j + 1]] for j in range(len(ids) - 1)]
        told = [step.logprob for step in echo.steps]
        errors[tail] = float(np.abs(np.subtract(told, exact)).mean())
        assert {step.status for step in echo.steps} <= {"certified", "truncated"}
        assert any(step.status == "truncated" for step in echo.steps)
    assert errors["impute"] < errors["zero"]


@pytest.mark.parametrize("max_tokens", [0, 1, 5])
async def test_what_is_generated_follows(build, server, max_tokens):
    adapter = build()
    before = len(server.requests)
    _, steps, ending = await echoed(adapter, max_tokens=max_tokens, lookahead=1)
    assert len(steps) == max_tokens or steps[-1].special == "end"
    assert ending.usage.calls == len(server.requests) - before == max(1, len(steps))
    job = adapter.prepare(
        Request("tiny", TEXT, Sampling(max_tokens=5, temperature=0.0), trace="steps")
    )
    plain = [event async for event in adapter.run(job)][:-1]
    assert [s.token for s in steps] == [s.token for s in plain][:max_tokens]


async def test_choices_of_one_request_share_the_scores(build, server):
    adapter = build()
    request = Request("tiny", TEXT, Sampling(max_tokens=1, seed=1), n=2, echo="scores")
    job = adapter.prepare(request)
    before = len(server.requests)
    (one, *_), (two, *_) = [[e async for e in adapter.run(job, i)] for i in range(2)]
    assert one.steps == two.steps
    assert len(server.requests) == before + 1


async def test_the_text_alone_costs_nothing(build, server):
    adapter = build()
    before = len(server.requests)
    echo, steps, ending = await echoed(adapter, echo="text", trace="off")
    assert (echo.text, echo.steps, steps, ending.usage.calls) == (TEXT, (), [], 0)
    assert len(server.requests) == before


async def test_special_tokens_inside_a_text(build):
    """What stands in front of one does not change what the pair is asked about behind it."""
    for other in (False, True):
        adapter = build(other=other)
        vocabulary = adapter._models["tiny"].vocabulary
        start, end = (vocabulary.specials[n] for n in ("<|bos|>", "<|endoftext|>"))
        text = vocabulary.encode(b"The harbour")
        echo, _, _ = await echoed(adapter, (start, *text, end, *text), alpha=1.0)
        assert len(echo.steps) == 2 * len(text) + 1
        assert echo.first.special == "<|bos|>"
        assert echo.steps[len(text)].special == "end"
        assert echo.text == "The harbour" * 2
        assert all(math.isfinite(step.logprob) for step in echo.steps)


async def test_a_text_of_one_token_has_nothing_to_score(build, server):
    adapter = build()
    before = len(server.requests)
    echo, _, ending = await echoed(adapter, (50,))
    assert (echo.steps, ending.usage.calls, len(server.requests)) == ((), 0, before)


async def test_forced_steps_only_where_they_are_allowed(build, server, monkeypatch):
    """Behind an upstream that cannot score a text in one call."""
    adapter = build(top_logprobs=3)
    free = build(top_logprobs=3, limits={"forced_scoring": True})
    exact, _, _ = await echoed(adapter, TEXT[:24], alpha=1.0)
    for one in (adapter, free):
        upstream = one._models["tiny"].upstream._inner
        upstream.capabilities = replace(upstream.capabilities, text_scoring="none")
    before = len(server.requests)
    with pytest.raises(UnsupportedParameter, match=r"limits\.forced_scoring: true allows") as error:
        await echoed(adapter, TEXT[:24])
    assert (error.value.param, len(server.requests)) == ("echo", before)
    echo, _, ending = await echoed(free, TEXT[:24], alpha=1.0)
    asked = len(server.requests) - before
    assert asked == ending.usage.calls >= len(echo.steps)
    for ours, theirs in zip(echo.steps, exact.steps, strict=True):
        assert ours.token == theirs.token
        assert ours.logprob == pytest.approx(theirs.logprob, abs=1e-4)


async def test_templates_make_a_prompt_a_part_of_another_text(build, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.content }}{% endfor %}:")
    adapter = build(templates={"expert": str(template)})
    with pytest.raises(BadRequest, match="templates") as error:
        await echoed(adapter)
    assert error.value.param == "echo"


async def test_choices_in_a_chat_and_behind_a_prompt(build, server, tmp_path):
    template = tmp_path / "t.jinja"
    template.write_text("{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}")
    adapter = build(templates={"upstream": str(template)}, top_logprobs=10**6)
    chat = Chat((Message("user", "Which letter?"),))
    for prompt in ("Which letter?", chat):
        before = len(server.requests)
        request = Request("tiny", prompt, choices=("A", "B", "the"), alpha=1.0)
        (ending,) = [event async for event in adapter.run(adapter.prepare(request))]
        assert len(server.requests) - before == ending.usage.calls == 1
        shares = [label.logprob for label in ending.verdict.labels]
        assert sum(map(math.exp, shares)) == pytest.approx(1.0)
        assert ending.text == ("A", "B", "the")[int(np.argmax(shares))]


async def test_labels_of_several_tokens_need_an_upstream_that_goes_on(build, server):
    adapter = build(upstream={"prefix": "text"}, top_logprobs=10_000)
    upstream = adapter._models["tiny"].upstream._inner
    upstream.capabilities = replace(upstream.capabilities, continues="none")
    before = len(server.requests)
    with pytest.raises(BadRequest, match="choice 1 takes several") as error:
        adapter.prepare(Request("tiny", TEXT, choices=("A", "zebra crossing")))
    assert (error.value.param, len(server.requests)) == ("steering.choices", before)
    request = Request("tiny", TEXT, choices=("A", "B"))
    (ending,) = [event async for event in adapter.run(adapter.prepare(request))]
    assert ending.text in ("A", "B")


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
@pytest.mark.parametrize("k", [3, 20])
async def test_several_strengths_at_once_are_what_they_are_one_by_one(
    build, server, monkeypatch, other, k
):
    """From any token on; one call, and the pair reads as often as for one of them."""
    adapter = build(other=other, top_logprobs=k)
    batches, surveyed, whole_of = [], [], Reader.whole
    adapter._models["tiny"].pair.watch(batches.append)

    async def counted(reader, generated):
        surveyed.append(generated)
        return await whole_of(reader, generated)

    monkeypatch.setattr(Reader, "whole", counted)
    alphas, start = (0.0, 0.5, 1.0, 3.0), 9

    def job(alpha):
        request = Request("tiny", TEXT, Sampling(max_tokens=0), alpha=alpha, echo="scores")
        return adapter.prepare(replace(request, trace="steps"))

    alone, read = [], []
    for alpha in alphas:
        batches.clear()
        (echo,) = await adapter.scores(job(alpha), (alpha,), start)
        alone.append(echo)
        read.append(len(batches))
    before = len(server.requests)
    batches.clear()
    surveyed.clear()
    together = await adapter.scores(job(alphas[-1]), alphas, start)
    assert len(server.requests) == before + 1
    assert len(batches) == read[-1] == max(read)
    assert len(surveyed) == len(set(surveyed)) == len(together[0].steps) >= 20
    whole, _, _ = await echoed(adapter, alpha=3.0)
    assert len(together[-1].steps) == len(whole.steps) - start + 1
    for ours, theirs in zip(together, alone, strict=True):
        assert ours.text == theirs.text == TEXT
        for one, other_one in zip(ours.steps, theirs.steps, strict=True):
            assert one.token == other_one.token
            assert one.logprob == pytest.approx(other_one.logprob, abs=1e-12)
            assert one.offset == pytest.approx(other_one.offset, abs=1e-12)
            assert one.bounds == pytest.approx(other_one.bounds, abs=1e-12)
            assert (one.status, one.rank, one.flags) == (
                other_one.status,
                other_one.rank,
                other_one.flags,
            )
    for one, from_the_start in zip(together[-1].steps, whole.steps[start - 1 :], strict=True):
        assert one.logprob == pytest.approx(from_the_start.logprob, abs=1e-5)  # another forward
