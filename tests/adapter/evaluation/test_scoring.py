"""Continuations scored: by the hosted model at every strength, and by the pair by itself."""

from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from adapter.adapter import Adapter
from adapter.evaluation.alone import ByItself
from adapter.evaluation.replies import Strength
from adapter.evaluation.steered import Steered, behind
from adapter.evaluation.suite import Task
from adapter.pair.network import Network
from adapter.pair.reader import ANTIEXPERT
from adapter.request import Request, Sampling
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.tiny import tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "The harbour master kept a ledger of every ship, and the weather was"
ANSWERS = [" in the harbour", " naïve 東京", "n't here; it's a small town", " 1987"]


@pytest.fixture(scope="module")
def server():
    with model_server(tiny().upstream) as server:
        yield server


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def build(server):
    built = []

    def make(**more):
        settings = settings_for(server.base_url, **{"cache": {"url": "none"}} | more)
        built.append(Adapter.from_settings(settings))
        return built[-1]

    yield make
    for adapter in built:
        await adapter.close()


def steered(adapter, alphas=(0.5, 2.0), **mixtures):
    own = adapter.model("tiny").settings.weights
    return Steered(adapter, "tiny", "hosted", {"adapted": own} | mixtures, alphas)


def loaded(path):
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64).eval()


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
async def test_answers_have_the_numbers_of_separate_echoes(build, server, other):
    """One call an answer, for all strengths; the echoes take one each."""
    adapter = build(other=other)
    system, before = steered(adapter), len(server.requests)
    replies = await system.scored(PROMPT, ANSWERS, system.strengths)
    assert len(server.requests) - before == len(ANSWERS)
    assert [reply.spent.calls for reply in replies] == [len(ANSWERS), 0, 0]
    vocabulary = adapter.vocabulary("tiny")
    for strength, reply in zip(system.strengths, replies, strict=True):
        for answer, scored in zip(ANSWERS, reply.scored, strict=True):
            request = Request("tiny", PROMPT + answer, Sampling(max_tokens=0), echo="scores")
            job = adapter.prepare(replace(request, alpha=strength.alpha or 0.0))
            echo = await anext(adapter.run(job))
            start = behind(job.prefix.ids, answer, vocabulary)
            told = echo.steps[start - 1 :]
            assert scored.logprob == pytest.approx(sum(s.logprob for s in told), abs=1e-4)
            assert scored.tokens == len(told)
            assert scored.size == sum(len(s.token) for s in told) >= len(answer.encode())
        assert (reply.tally.tokens > 0) == (strength.alpha is not None)
        assert reply.tally.places == ()


async def test_only_the_strengths_wanted_are_told(build):
    system = steered(build())
    whole = await system.scored(PROMPT, ANSWERS, system.strengths)
    for wanted in ((0,), (2,), (2, 1)):
        some = [system.strengths[at] for at in wanted]
        told = await system.scored(PROMPT, ANSWERS, some)
        for at, reply in zip(wanted, told, strict=True):
            for one, same in zip(reply.scored, whole[at].scored, strict=True):
                assert one.logprob == pytest.approx(same.logprob, abs=1e-5)


async def test_the_pair_reads_a_prompt_once_for_all_answers(build, monkeypatch):
    adapter, read = build(), []
    forward = Network.forward

    def counted(self, parts):
        read.append(sum(len(part.tokens) for part in parts))
        return forward(self, parts)

    monkeypatch.setattr(Network, "forward", counted)
    system = steered(adapter)
    await system.scored(PROMPT, ANSWERS, system.strengths)
    vocabulary = adapter.vocabulary("tiny")
    prompt = len(vocabulary.encode(PROMPT.encode()))
    texts = sum(len(vocabulary.encode((PROMPT + a).encode())) - prompt for a in ANSWERS)
    assert prompt > 15
    assert sum(read) <= 2 * (prompt + texts + 2 * len(ANSWERS))  # two models
    read.clear()
    alone = ByItself(adapter.model("tiny"), "news")
    await alone.scored(PROMPT, ANSWERS, alone.strengths)
    assert sum(read) <= prompt + texts


async def test_mixtures_share_the_upstreams_answers(build, server):
    adapter = build()
    system, before = steered(adapter, (1.0,), **{"adapted news=0": {"news": 0.0}}), 0
    before = len(server.requests)
    hosted, adapted, mixed = await system.scored(PROMPT, ANSWERS, system.strengths)
    assert len(server.requests) - before == len(ANSWERS)
    assert [s.system for s in system.strengths] == ["hosted", "adapted", "adapted news=0"]
    for own, none, some in zip(hosted.scored, mixed.scored, adapted.scored, strict=True):
        assert none.logprob == pytest.approx(own.logprob, abs=0.2)  # α moves the hidden tail alone
        assert abs(some.logprob - own.logprob) > 1e-6


async def test_the_answers_own_tokens_are_those_that_end_behind_the_prompt(build):
    words = build().vocabulary("tiny")
    whole = words.encode((PROMPT + " in the harbour").encode())
    start = behind(whole, " in the harbour", words)
    assert words.decode(whole[:start]) == PROMPT.encode()
    crossed = words.encode(b"the harbour")  # " harbour" is one token
    start = behind(crossed, "our", words)
    assert words.decode(crossed[:start]) == b"the"
    assert behind(crossed, "", words) == len(crossed)
    end = words.specials["<|endoftext|>"]
    assert behind((end, *crossed), "the harbour", words) == 1


@pytest.mark.parametrize("name", ["news", ANTIEXPERT])
async def test_a_model_by_itself_is_what_transformers_makes_of_it(build, name):
    adapter = build(pair={"dtype": "float64"})
    system = ByItself(adapter.model("tiny"), name)
    model, words = loaded(tiny().expert if name else tiny().antiexpert), adapter.vocabulary("tiny")
    (reply,) = await system.scored(PROMPT, ANSWERS, system.strengths)
    for answer, scored in zip(ANSWERS, reply.scored, strict=True):
        ids = words.encode((PROMPT + answer).encode())
        start = behind(ids, answer, words)
        expected = sum(chances(model, ids)[start - 1 :])
        assert scored.logprob == pytest.approx(expected, abs=1e-9)
    text = PROMPT + "".join(ANSWERS) * 8
    ids = words.encode(text.encode())
    assert len(ids) > 150  # read in several pieces
    (reply,) = await system.scored("", [text], system.strengths)
    (one,) = reply.scored
    assert one.logprob == pytest.approx(sum(chances(model, ids)), abs=1e-8)
    assert (one.tokens, one.size) == (len(ids) - 1, len(words.decode(ids[1:])))
    await writes_as_transformers(system, model, words)


def chances(model, ids):
    with torch.inference_mode():
        rows = torch.log_softmax(model(torch.tensor([ids])).logits[0], -1)
    return [rows[j, ids[j + 1]].item() for j in range(len(ids) - 1)]


async def writes_as_transformers(system, model, words):
    ids = words.encode(PROMPT.encode())
    task = Task.model_construct(max_tokens=12, stop=())
    (reply,) = await system.written(PROMPT, task, system.strengths)
    prompt = torch.tensor([ids])
    made = model.generate(
        prompt, attention_mask=torch.ones_like(prompt), max_new_tokens=12, do_sample=False
    )
    new = [i for i in made[0, len(ids) :].tolist() if i not in words.end]
    assert reply.answer == words.decode(new).decode("utf-8", "replace")
    stop = reply.answer[2:4]
    task = Task.model_construct(max_tokens=12, stop=(stop,))
    (cut,) = await system.written(PROMPT, task, system.strengths)
    assert cut.answer == reply.answer[: reply.answer.index(stop)]


async def test_answers_that_share_no_token_by_themselves(build):
    """The border lies inside the first token of each: there is nothing to read once."""
    adapter = build(pair={"dtype": "float64"})
    system, words = ByItself(adapter.model("tiny"), "news"), adapter.vocabulary("tiny")
    model, answers = loaded(tiny().expert), ["t isn", "s the tide"]
    (reply,) = await system.scored("i", answers, system.strengths)
    texts = [words.encode(("i" + answer).encode()) for answer in answers]
    assert texts[0][0] != texts[1][0]
    for ids, scored in zip(texts, reply.scored, strict=True):
        assert scored.logprob == pytest.approx(sum(chances(model, ids)), abs=1e-9)
        assert scored.tokens == len(ids) - 1


async def test_labels_by_itself(build):
    adapter = build(pair={"dtype": "float64"})
    system, words = ByItself(adapter.model("tiny"), "news"), adapter.vocabulary("tiny")
    labels = ["a", "i", "harbour master"]
    (reply,) = await system.chosen(PROMPT, labels, system.strengths)
    ids = words.encode(PROMPT.encode())
    with torch.inference_mode():
        row = torch.log_softmax(loaded(tiny().expert)(torch.tensor([ids])).logits[0, -1], -1)
    masses = [
        np.logaddexp.reduce([row[words.id_of(spelt)].item() for spelt in (one, b" " + one)])
        for one in (b"a", b"i")
    ]
    told = dict(zip(labels, reply.weights, strict=True))
    assert told["a"] - told["i"] == pytest.approx(masses[0] - masses[1], abs=1e-9)
    assert np.logaddexp.reduce(list(told.values())) == pytest.approx(0.0, abs=1e-12)
    assert reply.answer == max(told, key=told.get)


async def test_generations_of_all_strengths_share_what_the_upstream_showed(build, server):
    adapter = build()
    system = steered(adapter, (1e-9, 2.0))
    task = Task.model_construct(max_tokens=10, stop=("\n",))
    before = len(server.requests)
    hosted, hardly, adapted = await system.written(PROMPT, task, system.strengths)
    spent = [reply.spent.calls for reply in (hosted, hardly, adapted)]
    assert sum(spent) == len(server.requests) - before
    assert (spent[0] > 0, spent[1]) == (True, 0)
    assert hardly.answer == hosted.answer
    assert (hardly.tally.places, hosted.tally.tokens) == ((), 0)
    assert hardly.tally.tokens > 0
    tally = adapted.tally
    assert tally.certified + tally.expanded + tally.truncated == tally.tokens
    assert all(0 <= place < tally.tokens for place in tally.places)


async def test_labels_the_upstream_does_not_show_are_no_answer(build):
    adapter = build(top_logprobs=1, upstream={})
    upstream = adapter.model("tiny").upstream._inner
    upstream.capabilities = replace(upstream.capabilities, scoring=None)
    system = steered(adapter)
    replies = await system.chosen(PROMPT, ["東", "½"], system.strengths)
    assert [(r.answer, r.weights) for r in replies] == [("", ())] * 3
    assert replies[0].spent.calls == 1


async def test_strengths_are_named(build):
    assert ByItself(build().model("tiny"), ANTIEXPERT).strengths == (Strength("anti-expert"),)
    assert ByItself(build().model("tiny"), "news").strengths == (Strength("expert news"),)
