"""Lookahead on real engines: every length of draft gives the text of one token at a time.

Engines add noise of 1e-5 to 1e-4 nats between a draft and single steps. So a text may differ from
its twin, but only from where the two best adapted scores are a tie, and on few prompts.
"""

import asyncio
import contextlib
import logging
import os
from dataclasses import replace

import numpy as np
import pytest
import pytest_asyncio

from adapter.adapter import Adapter
from adapter.candidates import Ending
from adapter.demo.almanac import questions
from adapter.demo.engine import Engine, EngineOptions
from adapter.demo.stage import WEIGHTS, settings_for
from adapter.request import Request, Sampling
from adapter.settings import Settings
from adapter.steering import gumbel, noise, token_words
from tests.e2e.prompts import PROMPTS
from tests.support.configured import settings_for as tiny_settings
from tests.support.vllm import vllm_server

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

LOG = logging.getLogger(__name__)  # the counts: --log-cli-level=INFO
TIE = 2e-3  # nats
FEW = 0.01  # of the prompts
SHOWN = 20
GREEDY = Sampling(max_tokens=24, temperature=0.0)
SEEDED = Sampling(max_tokens=24, temperature=1.0, seed=11)


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def almanac():
    """The demo's model on its own engine, nothing cached."""
    options = EngineOptions(alias="hosted", threads=1, slots=8)
    with Engine(WEIGHTS / "hosted.gguf", options) as engine:
        settings = settings_for(engine.base_url) | {"cache": {"url": "none"}}
        adapter = Adapter.from_settings(Settings.model_validate(settings))
        yield adapter
        await adapter.close()


@pytest_asyncio.fixture(scope="module", loop_scope="module")
async def vllm():
    """A tiny model on a real vLLM."""
    python = os.environ.get("TEST_VLLM_PYTHON")
    if python is None:
        pytest.skip("TEST_VLLM_PYTHON names no interpreter that has vLLM")
    with vllm_server(python) as base_url:
        adapter = Adapter.from_settings(tiny_settings(base_url, cache={"url": "none"}))
        yield adapter
        await adapter.close()


async def texts(adapter, model, prompts, sampling, lookahead, at_once):
    """The steps of every prompt, so many at a time."""
    gate = asyncio.Semaphore(at_once)

    async def one(prompt):
        request = Request(model, prompt, sampling, lookahead=lookahead, shown=SHOWN)
        async with gate, contextlib.aclosing(adapter.run(adapter.prepare(request))) as events:
            return [event async for event in events if not isinstance(event, Ending)]

    return await asyncio.gather(*map(one, prompts))


def margin(step, at, sampling):
    """How far the best of a step is before the second, in nats of adapted score."""
    scores = np.array([shown.logprob for shown in step.shown])
    if not sampling.greedy:
        words = token_words((shown.token, shown.special) for shown in step.shown)
        scores = scores / sampling.temperature + gumbel(noise(sampling.seed, 0, at, words))
    second, best = np.partition(scores, -2)[-2:]
    return best - second


def differences(ones, others, sampling):
    """The margin at the first difference of every prompt that has one."""
    found = []
    for one, other in zip(ones, others, strict=True):
        pairs = enumerate(zip(one, other, strict=False))
        first = next((i for i, (a, b) in pairs if a.token != b.token), None)
        if first is None and len(one) == len(other):
            continue
        assert first is not None, "one text is the beginning of the other"
        found.append(margin(one[first], first, sampling))
    return found


async def compare(adapter, model, prompts, sampling, lookaheads, at_once):
    ones = await texts(adapter, model, prompts, sampling, 1, 1)
    for lookahead in lookaheads:
        others = await texts(adapter, model, prompts, sampling, lookahead, at_once)
        found = differences(ones, others, sampling)
        LOG.info("n=%s, %s at once: %s of %s differ", lookahead, at_once, found, len(prompts))
        assert all(gap <= TIE for gap in found), (lookahead, found)
        assert len(found) <= FEW * len(prompts) + 1, (lookahead, found)


@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_any_length_gives_the_text_of_one_token_at_a_time(almanac, sampling):
    new, old = questions()
    prompts = [question.prompt for question in [*new[:12], *old[:12]]]
    await compare(almanac, "almanac", prompts, sampling, [3, 16, "auto", "stream"], at_once=8)


@pytest.mark.full
@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_any_length_on_200_prompts(almanac, sampling, at_once):
    new, old = questions()
    prompts = [question.prompt for question in [*new[:100], *old[:100]]]
    lookaheads = [2, 3, 8, 16, 64, "auto", "stream"]
    await compare(almanac, "almanac", prompts, sampling, lookaheads, at_once)


@pytest.mark.full
@pytest.mark.parametrize("at_once", [1, 16])
@pytest.mark.parametrize("sampling", [GREEDY, SEEDED], ids=["greedy", "seeded"])
async def test_any_length_on_vllm(vllm, sampling, at_once):
    prompts = [prompt + more for prompt in PROMPTS for more in ("", " It")]
    assert len(prompts) == 100
    lookaheads = [2, 3, 8, 16, 64, "auto", "stream"]
    short = replace(sampling, max_tokens=12)
    await compare(vllm, "tiny", prompts, short, lookaheads, at_once)
