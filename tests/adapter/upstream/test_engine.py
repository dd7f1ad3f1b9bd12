"""The llama.cpp dialect against llama.cpp itself, beside the same model under transformers."""

import random
from collections.abc import AsyncIterator, Iterator

import pytest

from adapter.candidates import END, Position
from adapter.demo.engine import Engine, EngineOptions
from adapter.errors import ContextTooLong, UpstreamMalformed
from adapter.prefix import Prefix
from adapter.upstream import Endpoint, Upstream, connect
from tests.adapter.upstream.vocabularies import BYTES, Allowed
from tests.support.model_server import ModelServer, model_server
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Vocabulary

pytestmark = pytest.mark.engine

CLOSE = 2e-5
"""Nats between the engine and transformers, both float32; measured 6e-6 at worst."""


@pytest.fixture(scope="module")
def truth() -> Iterator[ModelServer]:
    with model_server(tiny().upstream) as server:
        yield server


@pytest.fixture(scope="module")
def engine() -> Iterator[Engine]:
    with Engine(tiny().gguf, EngineOptions(context=256, slots=2, threads=1)) as engine:
        yield engine


@pytest.fixture(scope="module")
def vocabulary() -> Vocabulary:
    return load_vocabulary(f"hf:{tiny().upstream}")


@pytest.fixture
async def upstream(engine: Engine, vocabulary: Vocabulary) -> AsyncIterator[Upstream]:
    upstream = wire(engine, vocabulary)
    yield upstream
    await upstream.close()


def wire(engine: Engine, vocabulary: Vocabulary, k: int = 10_000) -> Upstream:
    endpoint = Endpoint(engine.base_url, "demo")
    return connect(endpoint, api="llama.cpp", vocabulary=vocabulary, top_logprobs=k)


def prefixes(count: int, size: int) -> list[Prefix]:
    """Random prompts: many end inside a character, and so do many of the tokens after them."""
    draw = random.Random(3)
    return [Prefix.of(draw.choices(range(2, size), k=draw.randint(1, 40))) for _ in range(count)]


def check(position: Position, prefix: Prefix, truth: ModelServer) -> None:
    """The whole vocabulary is there, with the model's own log-probabilities."""
    expected = truth.logprobs(list(prefix.ids)).tolist()
    shown = {c.id: c.logprob for c in position.candidates}
    assert shown == pytest.approx(dict(enumerate(expected)), abs=CLOSE)
    assert position.hidden < 1e-4


async def test_one_position_is_the_models_own(
    upstream: Upstream, truth: ModelServer, vocabulary: Vocabulary
) -> None:
    partial = 0
    for prefix in prefixes(30, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 1, Allowed())
        (position,) = draft.positions
        check(position, prefix, truth)
        assert (position.drafted, draft.finish_reason, draft.usage.calls) == (None, None, 1)
        partial += position.candidates[0].token[-1:] >= b"\xc2"
    assert partial >= 3, "no prompt whose best token ends inside a character: a weak test"


async def test_every_position_of_a_run_is_the_models_own(
    upstream: Upstream, truth: ModelServer, vocabulary: Vocabulary
) -> None:
    lengths, calls = [], 0
    for prefix in prefixes(40, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 8, Allowed())
        calls += draft.usage.calls
        lengths.append(len(draft.positions))
        at = prefix
        for position in draft.positions:
            check(position, at, truth)
            if position.drafted is not None:
                assert position.drafted == position.candidates[0]
                at = at.extend(position.drafted)
    assert 8 in lengths
    assert min(lengths) >= 1
    assert calls > 40, "no first position was lost: a weak test"


async def test_end_is_shown_and_drafted(upstream: Upstream, vocabulary: Vocabulary) -> None:
    for prefix in prefixes(80, len(vocabulary.tokens)):
        draft = await upstream.draft(prefix, 16, Allowed())
        if draft.finish_reason == "stop":
            last = draft.positions[-1]
            assert last.drafted is not None
            assert (last.drafted.special, last.drafted.id) == (END, 0)
            return
    pytest.fail("no text ended: a weak test")


async def test_the_forced_token_changes_no_logprob(
    engine: Engine, upstream: Upstream, vocabulary: Vocabulary
) -> None:
    for prefix in prefixes(10, len(vocabulary.tokens)):
        forced = await upstream.draft(prefix, 1, Allowed())
        free = await upstream.draft(prefix, 2, Allowed())
        if free.positions[0].drafted is not None:
            by_id = {c.id: c.logprob for c in forced.positions[0].candidates}
            assert by_id == pytest.approx(
                {c.id: c.logprob for c in free.positions[0].candidates}, abs=CLOSE
            )


async def test_top_k_is_the_head_of_the_whole(
    engine: Engine, upstream: Upstream, vocabulary: Vocabulary
) -> None:
    top = wire(engine, vocabulary, 5)
    for prefix in prefixes(5, len(vocabulary.tokens)):
        few = (await top.draft(prefix, 1, Allowed())).positions[0]
        all_of_it = (await upstream.draft(prefix, 1, Allowed())).positions[0]
        assert [c.id for c in few.candidates] == [c.id for c in all_of_it.candidates[:5]]
        assert few.hidden > all_of_it.hidden
    await top.close()


async def test_the_prompt_cache_is_used(upstream: Upstream, vocabulary: Vocabulary) -> None:
    prefix = Prefix.of(vocabulary.encode(b"The harbour master kept a ledger of every ship"))
    await upstream.draft(prefix, 1, Allowed())
    again = await upstream.draft(prefix, 1, Allowed())
    assert again.usage.prompt_tokens == len(prefix.ids)
    assert again.usage.cached_tokens == len(prefix.ids) - 1


async def test_another_tokenizer_is_noticed(engine: Engine) -> None:
    wrong = wire(engine, BYTES)
    with pytest.raises(UpstreamMalformed, match="tokenizer is not the upstream's"):
        await wrong.draft(Prefix.of([50, 60]), 1, Allowed())
    await wrong.close()


async def test_a_prompt_too_long_is_said_so(upstream: Upstream) -> None:
    with pytest.raises(ContextTooLong, match="256 tokens"):
        await upstream.draft(Prefix.of([50] * 300), 1, Allowed())
