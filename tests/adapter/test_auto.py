"""`api: auto`: a model's record decides how its upstream is spoken to."""

import pytest

from adapter.budget import Budget
from adapter.errors import SettingsError, UpstreamMalformed
from adapter.model import endpoint_of, load_models
from adapter.prefix import Prefix
from adapter.settings import Settings
from adapter.upstream.records import Finding, Record, load
from tests.support.configured import settings_for
from tests.support.model_server import ModelServer


@pytest.fixture
def settings(server: ModelServer, tmp_path, monkeypatch) -> Settings:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    server.requests.clear()
    return settings_for(server.base_url, api="auto", top_logprobs=1000)


async def test_it_is_probed_once_and_remembered(
    settings: Settings, server: ModelServer, caplog: pytest.LogCaptureFixture
) -> None:
    (model,) = load_models(settings).values()
    assert "with at most 25 calls" in caplog.text
    asked = len(server.requests)
    assert 10 < asked < 25
    assert model.upstream.identity[0] == "completions"
    assert model.upstream.capabilities.k_limit == 400
    draft = await model.upstream.draft(Prefix.of([50, 60]), 1, Budget(1))
    assert len(draft.positions[0].candidates) == 400
    await model.close()

    (again,) = load_models(settings).values()
    assert len(server.requests) == asked + 1
    assert again.upstream.capabilities == model.upstream.capabilities
    await again.close()


def kept(settings: Settings, **changes) -> None:
    endpoint = endpoint_of("tiny", settings)
    told = {"api": "completions", "reason": "", "calls": 9, "profile": None, "findings": {}}
    record = Record(base_url=endpoint.base_url, model=endpoint.model, **(told | changes))
    record.save(settings.maps_directory.parent)
    assert load(settings.maps_directory.parent, record.base_url, record.model) == record


async def test_no_more_candidates_are_asked_for_than_are_granted(settings, server) -> None:
    kept(settings, findings={"k_limit": Finding(7, "measured")})
    (model,) = load_models(settings).values()
    await model.upstream.draft(Prefix.of([50, 60]), 1, Budget(1))
    assert [body["logprobs"] for body in server.requests] == [7]
    await model.close()


def test_what_gives_no_logprobs_is_refused_at_the_start(settings, server) -> None:
    kept(settings, api=None, reason="it gives no log-probabilities of its candidates")
    with pytest.raises(UpstreamMalformed, match="no log-probabilities"):
        load_models(settings)
    assert server.requests == []


async def test_an_answer_that_contradicts_the_record_is_an_error(settings) -> None:
    kept(settings, api="llama.cpp")
    (model,) = load_models(settings).values()
    with pytest.raises(UpstreamMalformed, match="set `api` to completions"):
        await model.upstream.draft(Prefix.of([50, 60]), 1, Budget(3))
    await model.close()


@pytest.mark.parametrize(
    ("url", "expected", "warned"),
    [
        ("http://127.0.0.1:9/v1", ("none", None), True),
        ("https://api.openai.com/v1", ("none", None), False),
        ("https://api.deepseek.com/beta", ("text", "prefix"), False),
        ("https://openrouter.ai/api/v1", ("text", "trailing message"), False),
    ],
)
async def test_a_chat_goes_on_only_where_that_is_known(
    url, expected, warned, tmp_path, monkeypatch, caplog
) -> None:
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    (model,) = load_models(settings_for(url, api="chat")).values()
    capabilities = model.upstream.capabilities
    assert (capabilities.continues, capabilities.continues_by) == expected
    assert ("adapter probe --chat" in caplog.text) is warned
    await model.close()


def test_a_chat_api_renders_by_itself(tmp_path) -> None:
    template = tmp_path / "chat.jinja"
    template.write_text("{{ messages }}")
    own = {"templates": {"upstream": str(template)}}
    with pytest.raises(SettingsError, match="renders chats by itself"):
        load_models(settings_for("http://127.0.0.1:9/v1", api="chat", **own))
