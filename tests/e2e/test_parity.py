"""One tokenizer, the whole vocabulary shown: the product is Equation 1.

With the pair in float64 what is left is the product's own arithmetic. In float32 one forward is
off by some 1e-6 nats by itself; llama.cpp's server adds as much.
"""

import contextlib

import numpy as np
import pytest
import pytest_asyncio
import torch
from transformers import AutoModelForCausalLM

from adapter.adapter import Adapter
from adapter.candidates import Ending
from adapter.demo.engine import Engine, EngineOptions
from adapter.request import Request, Sampling
from tests.e2e.prompts import PROMPTS
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

pytestmark = [pytest.mark.engine, pytest.mark.asyncio(loop_scope="module")]

TOKENS = 8
TIE = 2e-3  # nats: nearer scores than this are a tie on a real engine (its noise is below 1e-4)


class Equation1:
    """The obvious twin: three fresh forwards a step, float64 arithmetic.

    The hosted model runs in float32, as its server has it.
    """

    def __init__(self, upstream=None):
        models = tiny()
        load = AutoModelForCausalLM.from_pretrained
        paths = (upstream or models.upstream, models.expert, models.antiexpert)
        dtypes = (torch.float32, torch.float64, torch.float64)
        self.models = [load(p, dtype=d).eval() for p, d in zip(paths, dtypes, strict=True)]
        self.vocabulary = load_vocabulary(f"hf:{models.upstream}")

    def logprobs(self, ids, alpha):
        with torch.inference_mode():
            rows = [m(torch.tensor([ids])).logits[0, -1].double() for m in self.models]
        base, expert, anti = (torch.log_softmax(row, -1) for row in rows)
        return torch.log_softmax(base + alpha * (expert - anti), -1).numpy()

    def greedy(self, prompt, alpha):
        """The greedy ids, END not included, and the margin at each step in nats."""
        ids, out, margins = list(self.vocabulary.encode(prompt.encode())), [], []
        while len(out) < TOKENS:
            row = self.logprobs(ids, alpha)
            second, best = np.partition(row, -2)[-2:]
            margins.append(best - second)
            token = int(row.argmax())
            if token in self.vocabulary.end:
                break
            ids.append(token)
            out.append(token)
        return out, margins


@pytest.fixture(scope="module")
def twin():
    return Equation1()


@pytest.fixture(scope="module")
def whole(twin):
    return len(twin.vocabulary.tokens)


@pytest_asyncio.fixture(
    scope="module", loop_scope="module", params=["float64", "float32", "llama.cpp"]
)
async def steered(request, whole):
    """An in-process Adapter, and the tolerance its numerics allow."""
    with contextlib.ExitStack() as stack:
        if request.param == "llama.cpp":
            engine = Engine(tiny().gguf, EngineOptions(alias="tiny"))
            url = stack.enter_context(engine).base_url
            settings = settings_for(url, api="llama.cpp", top_logprobs=whole)
        else:
            url = stack.enter_context(model_server(tiny().upstream)).base_url
            pair = {"dtype": request.param}
            settings = settings_for(url, top_logprobs=whole, pair=pair)
        adapter = Adapter.from_settings(settings)
        yield adapter, 5e-5 if request.param == "llama.cpp" else 1e-5
        await adapter.close()


async def run(adapter, prompt, alpha, shown=0, **sampling):
    asked = Sampling(**{"max_tokens": TOKENS, "temperature": 0.0} | sampling)
    request = Request("tiny", prompt, asked, alpha=alpha, trace="steps", shown=shown)
    job = adapter.prepare(request)
    return [event async for event in adapter.run(job)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
async def test_the_adapted_distribution_is_equation_1(steered, twin, whole, alpha, record_property):
    adapter, tolerance = steered
    worst = 0.0
    for prompt in PROMPTS[::5]:
        ids = list(twin.vocabulary.encode(prompt.encode()))
        *steps, _ = await run(adapter, prompt, alpha, shown=whole, max_tokens=4)
        for step in steps:
            target = twin.logprobs(ids, alpha)
            assert step.status == "certified"
            # END and the start token have no bytes; they are found by class
            named = {(a.token, a.special): a.logprob for a in step.shown}
            assert len(named) == whole
            for token, data in enumerate(twin.vocabulary.tokens):
                special = next((n for n, i in twin.vocabulary.specials.items() if i == token), None)
                name = "end" if token in twin.vocabulary.end else special
                worst = max(worst, abs(named[data, name] - target[token]))
            if step.special is None:
                ids.append(twin.vocabulary.id_of(step.token))
    record_property(f"worst, alpha {alpha}", f"{worst:.1e}")
    assert worst <= tolerance


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
async def test_greedy_sequences_equal_the_plain_loop(steered, twin, alpha):
    adapter, _ = steered
    differing = 0
    for prompt in PROMPTS:
        expected, margins = twin.greedy(prompt, alpha)
        events = await run(adapter, prompt, alpha)
        assert isinstance(events[-1], Ending)
        got = [twin.vocabulary.id_of(s.token) for s in events[:-1] if s.special is None]
        if got != expected:
            at = next(
                (i for i, (a, b) in enumerate(zip(got, expected, strict=False)) if a != b),
                min(len(got), len(expected)),
            )
            assert margins[at] <= TIE, f"first difference at a margin of {margins[at]:.1e} nats"
            differing += 1
    assert differing <= len(PROMPTS) // 100


async def test_a_seed_gives_the_same_draws_again(steered):
    adapter, _ = steered
    drawn = [
        [e.token for e in (await run(adapter, PROMPTS[7], 1.0, temperature=1.0, seed=seed))[:-1]]
        for seed in (5, 5, 6)
    ]
    assert drawn[0] == drawn[1] != drawn[2]
