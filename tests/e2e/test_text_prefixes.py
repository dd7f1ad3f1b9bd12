"""Real servers asked with text: the same answers for every draft, and Equation 1."""

import contextlib
import os
from collections import Counter

import pytest
import pytest_asyncio

from adapter.adapter import Adapter
from adapter.candidates import Ending
from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import BadRequest
from adapter.request import Chat, Message, Request, Sampling
from tests.e2e.prompts import PROMPTS
from tests.e2e.test_parity import Equation1
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.tiny import make_model, tiny
from tests.support.vllm import vllm_server
from tokenizer_maps.loading import load_vocabulary

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

ASKED = (
    *PROMPTS[::5],
    "東京の天気",
    "In 1987 the 🚢",
    "Ça va? 🙂 ",
    "def main(argv: list[str]",
    "It's a",
)
TOKENS = 12
KNOWN = {"prefix": "text"}
UNKNOWN = {"tokenizer": "unknown"}


@contextlib.contextmanager
def served(api):
    if api == "llama.cpp":
        with Engine(tiny().gguf, EngineOptions(slots=1, alias="tiny")) as engine:
            yield engine.base_url
    elif api == "vllm":
        python = os.environ.get("TEST_VLLM_PYTHON")
        if python is None:
            pytest.skip("TEST_VLLM_PYTHON names no interpreter that has vLLM")
        with vllm_server(python) as base_url:
            yield base_url
    else:
        with model_server(tiny().upstream) as server:
            yield server.base_url


@pytest_asyncio.fixture(
    scope="module",
    loop_scope="module",
    params=["llama.cpp", "completions", pytest.param("vllm", marks=pytest.mark.full)],
)
async def server(request):
    with served(request.param) as base_url:
        yield request.param, base_url


@contextlib.asynccontextmanager
async def adapter_for(server, upstream, **more):
    api, base_url = server[0].replace("vllm", "completions"), server[1]
    adapter = Adapter.from_settings(settings_for(base_url, api=api, upstream=upstream, **more))
    try:
        yield adapter
    finally:
        await adapter.close()


async def answer(adapter, prompt, lookahead=8, shown=0, cache="bypass", **sampling):
    asked = Sampling(**{"max_tokens": TOKENS, "temperature": 0.0} | sampling)
    request = Request(
        "tiny", prompt, asked, alpha=1.0, lookahead=lookahead, cache=cache, shown=shown
    )
    return [event async for event in adapter.run(adapter.prepare(request))]


def told(events):
    """What may not depend on the draft; numbers are left out, as servers round by batch."""
    steps = [(step.token, step.special, step.flags) for step in events[:-1]]
    return steps, events[-1].finish_reason, events[-1].flags


def drifts(vocabulary, prompt, steps):
    """Whether a text, read again at any of its steps, has other tokens than were generated."""
    text, path = prompt.encode(), vocabulary.encode(prompt.encode())
    for step in steps:
        text, path = text + step.token, (*path, vocabulary.id_of(step.token))
        if vocabulary.encode(text) != path:
            return True
    return False


@pytest.mark.parametrize("temperature", [0.0, 1.0])
@pytest.mark.parametrize("upstream", [KNOWN, UNKNOWN], ids=["known", "unknown"])
async def test_every_draft_gives_the_same_answer(server, upstream, temperature):
    """With an unknown tokenizer only as long as no text has other tokens than were generated."""
    vocabulary = load_vocabulary(f"hf:{tiny().upstream}")
    differing, flags = [], Counter()
    async with adapter_for(server, upstream, top_logprobs=30) as adapter:
        for prompt in ASKED:
            expected = await answer(adapter, prompt, 1, temperature=temperature, seed=5)
            assert isinstance(expected[-1], Ending)
            flags.update(flag for step in expected[:-1] for flag in step.flags)
            flags["steps"] += len(expected) - 1
            for lookahead in (3, 8, "stream"):
                found = await answer(adapter, prompt, lookahead, temperature=temperature, seed=5)
                if told(found) != told(expected):
                    assert upstream is UNKNOWN
                    assert drifts(vocabulary, prompt, found[:-1])
                    differing.append((prompt, lookahead))
    assert flags["steps"] > 60
    assert len(differing) <= 3


async def test_the_cache_is_asked_first(server):
    for upstream in (KNOWN, UNKNOWN):
        async with adapter_for(server, upstream, top_logprobs=30) as adapter:
            cold = await answer(adapter, ASKED[4], cache="use")
            warm = await answer(adapter, ASKED[4], cache="use")
            assert told(cold) == told(warm)
            assert warm[-1].usage.calls < cold[-1].usage.calls
            assert (warm[-1].usage.calls == 0) == (upstream is KNOWN)


async def test_equation_1_where_the_text_has_the_tokens_that_were_generated(server):
    twin, checked, worst = Equation1(), 0, 0.0
    whole = len(twin.vocabulary.tokens)
    if server[0] == "vllm":  # its smallest head is twice as wide
        twin.models[0] = make_model(whole, seed=1, sharpness=5.0, width=64)
    more = {"top_logprobs": whole, "pair": {"dtype": "float64"}}
    async with adapter_for(server, KNOWN, **more) as adapter:
        for prompt in ASKED:
            ids = list(twin.vocabulary.encode(prompt.encode()))
            for step in (await answer(adapter, prompt, shown=whole, max_tokens=6))[:-1]:
                if step.special is not None or "retokenised" in step.flags:
                    break
                target = twin.logprobs(ids, 1.0)
                named = {a.token: a.logprob for a in step.shown if a.special is None}
                for token, data in enumerate(twin.vocabulary.tokens):
                    if data and twin.vocabulary.id_of(data) == token:
                        worst = max(worst, abs(named[data] - target[token]))
                ids.append(twin.vocabulary.id_of(step.token))
                checked += 1
    assert checked > 40
    assert worst < 5e-5


async def test_what_an_unknown_tokenizer_refuses(server):
    async with adapter_for(server, UNKNOWN) as adapter:
        with pytest.raises(BadRequest, match="logit_bias"):
            await answer(adapter, "It's", logit_bias={5: -100.0})
        with pytest.raises(BadRequest, match="not as token ids"):
            await answer(adapter, (5, 6))
        with pytest.raises(BadRequest, match=r"templates\.upstream"):
            await answer(adapter, Chat((Message("user", "Hello"),)))


async def test_special_tokens_in_a_users_text_are_refused_where_they_are_known(server):
    async with adapter_for(server, KNOWN) as adapter:
        with pytest.raises(BadRequest, match=r"<\|endoftext\|>"):
            await answer(adapter, "A text<|endoftext|>and another")
