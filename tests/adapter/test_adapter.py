"""The whole engine in process, in front of a served transformers model."""

import asyncio

import numpy as np
import pytest

from adapter.adapter import Adapter
from adapter.candidates import Ending
from adapter.errors import BadRequest, ContextTooLong, PairError, SettingsError
from adapter.request import Chat, Message, Request, Sampling
from tests.support.configured import settings_for
from tests.support.tiny import tiny

pytestmark = pytest.mark.asyncio(loop_scope="module")

PROMPT = "The harbour master kept a ledger"
CHAT = "{% for m in messages %}{{ m.role }}: {{ m.content }}\n{% endfor %}assistant:"


async def run(adapter, prompt=PROMPT, choice=0, **more):
    """Steps and ending of one choice, one token a call."""
    names = Sampling.__dataclass_fields__
    sampling = {"max_tokens": 6, "temperature": 0.0}
    sampling |= {k: more.pop(k) for k in list(more) if k in names}
    request = Request(
        "tiny", prompt, Sampling(**sampling), **{"trace": "steps", "lookahead": 1} | more
    )
    *steps, ending = [event async for event in adapter.run(adapter.prepare(request), choice)]
    assert isinstance(ending, Ending)
    return steps, ending


def text_of(steps, ending):
    return "".join(step.text for step in steps) + ending.text


def told(steps):
    return [(s.token, s.logprob, s.offset) for s in steps]


@pytest.mark.parametrize("other", [False, True], ids=["identity", "bridged"])
async def test_ids_and_text_are_the_same_prompt(build, other):
    adapter = build(other=other, cache={"url": "none"})
    vocabulary = adapter._models["tiny"].vocabulary
    ids = vocabulary.encode(PROMPT.encode())
    assert told((await run(adapter, ids))[0]) == told((await run(adapter, PROMPT))[0])


async def test_several_experts_add_up(build):
    models = tiny()
    experts = {"a": str(models.expert), "b": str(models.upstream)}
    adapter = build(pair={"experts": experts}, tail="zero")  # the same candidates for all
    first = {}
    for name, weights in {"a": {"a": 1.0}, "b": {"b": 1.0}, "ab": {"a": 0.5, "b": 2.0}}.items():
        steps, _ = await run(adapter, weights=weights, shown=20, max_tokens=1)
        first[name] = {(c.token, c.special): c.offset for c in steps[0].shown}
    assert any(first["a"].values())
    for token, offset in first["ab"].items():
        assert offset == pytest.approx(0.5 * first["a"][token] + 2 * first["b"][token], abs=1e-9)
    own, _ = await run(adapter, shown=20, max_tokens=1)  # the settings' weights: equal parts of 1
    for c in own[0].shown:
        mean = (first["a"][c.token, c.special] + first["b"][c.token, c.special]) / 2
        assert c.offset == pytest.approx(mean, abs=1e-9)


async def test_alpha_zero_needs_no_pair_unless_traced(build):
    adapter = build()
    request = Request("tiny", PROMPT, alpha=0.0)
    assert adapter.prepare(request).contexts == {}
    assert adapter.prepare(Request("tiny", PROMPT, alpha=0.0, trace="steps")).contexts
    untraced, _ = await run(adapter, alpha=0.0, trace="off")
    traced, _ = await run(adapter, alpha=0.0)
    assert [s.token for s in untraced] == [s.token for s in traced]
    assert not any(s.offset for s in untraced)
    assert any(s.offset for s in traced)


async def test_the_cap_on_calls_ends_the_answer(build, server):
    adapter = build(limits={"calls_per_request": 3}, cache={"url": "none"})
    before = len(server.requests)
    steps, ending = await run(adapter, "Licensed under", max_tokens=6)
    assert (len(steps), ending.finish_reason, ending.usage.calls) == (3, "length", 3)
    assert len(server.requests) - before == 3


async def test_the_cache_reads_what_was_paid_for(build, server):
    adapter = build()
    cold, paid = await run(adapter, "A prompt of its own")
    before = len(server.requests)
    warm, free = await run(adapter, "A prompt of its own")
    assert told(cold) == told(warm)
    assert (paid.usage.calls, free.usage.calls) == (len(cold), 0)
    assert {s.source for s in warm} == {"cache"}
    assert len(server.requests) == before


async def test_no_cache_pays_again(build, server):
    adapter = build(cache={"url": "none"})
    await run(adapter)
    before = len(server.requests)
    steps, _ = await run(adapter)
    assert len(server.requests) - before == len(steps)


async def test_nothing_is_asked_after_the_reader_left(build, server):
    adapter = build(cache={"url": "none"})
    request = Request("tiny", PROMPT, Sampling(max_tokens=50, temperature=0.0))
    events = adapter.run(adapter.prepare(request))
    await anext(events)
    await events.aclose()
    before = len(server.requests)
    await asyncio.sleep(0.1)
    assert len(server.requests) == before


async def test_a_ban_on_end_makes_the_answer_go_on(build):
    adapter = build()
    end = next(iter(adapter._models["tiny"].vocabulary.end))
    ended = None
    for n in range(40):
        steps, ending = await run(adapter, f"{PROMPT} {n}", max_tokens=20)
        if ending.finish_reason == "stop":
            ended = f"{PROMPT} {n}"
            break
    assert ended, "none of the prompts ends within 20 tokens"
    assert steps[-1].special == "end"
    longer, _ = await run(adapter, ended, max_tokens=20, logit_bias={end: -100})
    assert longer[len(steps) - 1].special is None


async def test_penalties_keep_a_token_from_coming_back(build):
    adapter = build()
    plain, _ = await run(adapter, max_tokens=12)
    assert len({s.token for s in plain}) < 12
    penalised, _ = await run(adapter, max_tokens=12, presence_penalty=2, frequency_penalty=2)
    assert len({s.token for s in penalised}) > len({s.token for s in plain})


async def test_a_long_text_is_refused_or_cut(build):
    long = "It's a small town; the answer to most is the harbour. " * 30
    with pytest.raises(ContextTooLong, match="512 tokens"):
        build(other=True).prepare(Request("tiny", long, Sampling(max_tokens=4)))
    vocabulary = build()._models["tiny"].vocabulary
    ids = vocabulary.encode(long.encode())[:500]  # what the upstream itself can read
    other = build(other=True, pair={"context": "tail"})
    pair_ids = other._models["tiny"].pair.vocabulary.encode(vocabulary.decode(ids))
    assert len(pair_ids) > 512
    steps, _ = await run(other, ids, max_tokens=4)
    assert all("context_cut" in s.flags for s in steps)
    assert any(s.offset for s in steps)


async def test_chat_goes_through_templates(build, tmp_path):
    template = tmp_path / "chat.jinja"
    template.write_text(CHAT)
    chat = Chat((Message("user", "Where does the harbour end?"),))
    plain = "user: Where does the harbour end?\nassistant:"
    adapter = build(templates={"upstream": str(template)}, cache={"url": "none"})
    assert told((await run(adapter, chat))[0]) == told((await run(adapter, plain))[0])
    own = build(templates={"upstream": str(template), "antiexpert": "plain"})
    assert told((await run(own, chat))[0]) != told((await run(adapter, chat))[0])


async def test_expert_and_antiexpert_may_see_different_prompts(build, tmp_path):
    """The paper's setting across tokenizers: what both see alike gives the same offsets again."""
    template = tmp_path / "same.jinja"
    template.write_text("{{ messages[0].content }}")
    plain, _ = await run(build(other=True), shown=20)
    same = {"expert": str(template), "antiexpert": str(template)}
    assert told((await run(build(other=True, templates=same), shown=20))[0]) == told(plain)
    template.write_text("Answer as a sailor would. {{ messages[0].content }}")
    moved, _ = await run(build(other=True, templates={"antiexpert": str(template)}), shown=20)
    assert not np.allclose([s.offset for s in moved[:1]], [s.offset for s in plain[:1]])


async def test_what_cannot_be_rendered_is_a_bad_request(build):
    adapter = build()
    for prompt, reason in [
        (Chat((Message("user", "hi"),)), "no chat template"),
        ("", "prompt is empty"),
        ((5, 100_000), "100000"),
    ]:
        with pytest.raises(BadRequest, match=reason):
            adapter.prepare(Request("tiny", prompt))


async def test_limits_are_checked_before_anything_is_asked(build):
    adapter = build(limits={"max_tokens": 10, "alpha": [0, 2]})
    for more, reason in [
        ({"alpha": 2.1}, "limits.alpha"),
        ({"alpha": -0.1}, "limits.alpha"),
        ({"weights": {"news": 3.0}}, "limits.alpha"),
        ({"weights": {"olds": 1.0}}, "olds"),
        ({"weights": {}}, "no expert"),
        ({"sampling": Sampling(max_tokens=11)}, "limits.max_tokens"),
    ]:
        with pytest.raises(BadRequest, match=reason):
            adapter.prepare(Request("tiny", PROMPT, **more))


async def test_models_with_equal_pairs_share_one(server):
    settings = settings_for(server.base_url)
    twice = settings.model_copy(update={"models": dict.fromkeys("ab", settings.models["tiny"])})
    adapter = Adapter.from_settings(twice)
    assert adapter._models["a"].pair is adapter._models["b"].pair
    await adapter.close()


async def test_what_does_not_fit_together_does_not_start(server, tmp_path):
    (tmp_path / "tokenizer.json").write_text("{}")
    cases = [
        (PairError, "different tokenizers", {"pair": {"experts": {"n": str(tiny().other_expert)}}}),
        (SettingsError, "identity", {"other": True, "bridge": "identity"}),
        (SettingsError, "tokenizer: ", {"upstream": {"tokenizer": f"hf:{tmp_path}"}}),
    ]
    for error, reason, more in cases:
        with pytest.raises(error, match=reason):
            Adapter.from_settings(settings_for(server.base_url, **more))


async def test_a_cache_that_cannot_be_opened_is_named_without_its_password(server, monkeypatch):
    monkeypatch.setenv("CACHE_SECRET", "s")
    for url in ("redis://u:canary-7Q@h?socket_timeout=1", "redis://u:canary-7Q@h:port"):
        cache = {"url": url, "secret_env": "CACHE_SECRET"}
        with pytest.raises(SettingsError, match=r"^cache\.url: a Redis URL") as raised:
            Adapter.from_settings(settings_for(server.base_url, cache=cache))
        assert "canary-7Q" not in str(raised.value)


async def test_it_closes_its_cache(server, tmp_path, monkeypatch):
    monkeypatch.setenv("CACHE_SECRET", "s")
    cache = {"url": f"sqlite:///{tmp_path}/c.db", "secret_env": "CACHE_SECRET"}
    adapter = Adapter.from_settings(settings_for(server.base_url, cache=cache))
    await run(adapter)
    assert [file.name for file in tmp_path.iterdir() if file.name != "c.db"]  # SQLite's own files
    await adapter.close()
    assert [file.name for file in tmp_path.iterdir()] == ["c.db"]


async def test_tenants_share_nothing(build, server):
    adapter = build()
    found = {}
    for tenant in ("a", "b", "a"):
        steps, _ = await run(adapter, "Somebody's own prompt", tenant=tenant)
        found.setdefault(tenant, []).append({s.source for s in steps})
    assert found == {"a": [{"upstream"}, {"cache"}], "b": [{"upstream"}]}


@pytest.mark.parametrize("cache", ["refresh", "bypass"])
async def test_what_was_kept_is_read_only_by_those_who_want_it(build, cache):
    adapter = build()
    one, first = await run(adapter, "Kept or not")
    two, fresh = await run(adapter, "Kept or not", cache=cache)
    assert told(one) == told(two)
    assert (first.usage.calls, fresh.usage.calls) == (len(one), len(two))
