"""The profile file against the record's fields and what is known of the providers."""

from dataclasses import fields

import pytest

from adapter.upstream.capabilities import CHAT, COMPLETIONS, LLAMACPP, Capabilities
from adapter.upstream.chat import FORMS
from adapter.upstream.profiles import Profile, profile_of, profiles
from adapter.upstream.records import FIELDS, assumed

NAMED = {p.name: p for p in profiles()}
WORDS = {
    "continues": {"ids", "text", "none"},
    "named_by": {"ids", "bytes", "text"},
    "scoring": {"chosen", "forced"},
    "text_scoring": {"echo", "forced", "none"},
    "unknown_fields": {"refused", "ignored"},
    "limited_by": {"max_tokens", "max_completion_tokens"},
}
YES_OR_NO = {f.name for f in fields(Capabilities) if f.type in (bool, bool | None)}


def test_every_provider_is_there() -> None:
    assert set(NAMED) == {
        "OpenAI completions", "OpenAI chat", "Azure OpenAI", "vLLM", "SGLang", "llama.cpp server",
        "llama-cpp-python", "Fireworks", "Together", "DeepSeek", "Mistral", "OpenRouter",
        "Cerebras", "xAI", "Gemini, OpenAI surface", "Ollama", "vLLM chat", "SGLang chat",
        "llama.cpp server chat",
    }  # fmt: skip


def test_the_fields_are_the_records() -> None:
    assert {*FIELDS, "rejection", "chats"} == {f.name for f in fields(Capabilities)}


@pytest.mark.parametrize("profile", profiles(), ids=lambda p: p.name)
def test_every_field_is_marked_once_and_of_its_kind(profile: Profile) -> None:
    assert set(profile.source) | set(profile.unverified) == set(FIELDS)
    assert not set(profile.source) & set(profile.unverified)
    assert profile.hosts or profile.owners
    assert None not in profile.source.values()
    for field, value in {**profile.source, **profile.unverified}.items():
        if value is not None:
            assert value in WORDS.get(field, {value})
            assert isinstance(value, bool) or field not in YES_OR_NO


def test_the_most_candidates_known() -> None:
    known = {name: p.source["k_limit"] for name, p in NAMED.items() if "k_limit" in p.source}
    assert known == {
        "OpenAI completions": 5, "OpenAI chat": 20, "Azure OpenAI": 20, "vLLM": 20, "Fireworks": 5,
        "Together": 20, "DeepSeek": 20, "OpenRouter": 20, "xAI": 8, "Gemini, OpenAI surface": 20,
        "Ollama": 20, "vLLM chat": 20,
    }  # fmt: skip


def test_how_prefixes_are_continued() -> None:
    by_form: dict[str, set[str]] = {}
    for name, profile in NAMED.items():
        by_form.setdefault(profile.source.get("continues", "?"), set()).add(name)
    assert by_form == {
        "ids": {
            "OpenAI completions",
            "vLLM",
            "SGLang",
            "llama.cpp server",
            "Fireworks",
            "Cerebras",
        },
        "text": {
            "llama-cpp-python",
            "Together",
            "DeepSeek",
            "Mistral",
            "OpenRouter",
            "Ollama",
            "vLLM chat",
            "SGLang chat",
            "llama.cpp server chat",
        },
        "none": {"OpenAI chat", "Azure OpenAI"},
        "?": {"xAI", "Gemini, OpenAI surface"},
    }


def test_openais_chats_are_limited_by_the_name_that_all_its_models_take() -> None:
    record = assumed("https://api.openai.com/v1", "gpt-5.1")
    assert record.narrow(CHAT).limited_by == "max_completion_tokens"


@pytest.mark.parametrize(("host", "several"), [("api.openai.com", True), ("api.x.ai", None)])
def test_what_a_profile_knows_of_several_choices_is_believed(host, several) -> None:
    record = assumed(f"https://{host}/v1", "m")
    assert record.narrow(CHAT).several is several
    assert record.narrow(COMPLETIONS).several is several


def test_only_sglang_is_known_to_show_logprobs_after_temperature() -> None:
    known = {n: p.source["before_temperature"] for n, p in NAMED.items() if
             "before_temperature" in p.source}  # fmt: skip
    assert [name for name, before in known.items() if not before] == ["SGLang", "SGLang chat"]


@pytest.mark.parametrize(
    ("name", "dialect"), [("vLLM", COMPLETIONS), ("llama.cpp server", LLAMACPP)]
)
def test_a_dialect_is_its_servers_profile(name: str, dialect: Capabilities) -> None:
    for field in ("every_step_shown", "end_visible", "scoring", "streams", "margin", "named_by",
                  "continues", "before_temperature", "before_bias", "appends"):  # fmt: skip
        assert NAMED[name].source[field] == getattr(dialect, field)


def test_chats_are_gone_on_with_in_a_form_that_is_spoken() -> None:
    chats = [p for p in profiles() if p.endpoint == "chat" and p.source.get("continues") == "text"]
    assert {p.source["continues_by"] for p in chats} == set(FORMS)


@pytest.mark.parametrize(
    ("url", "owner", "chat", "name"),
    [
        ("https://api.openai.com/v1", "openai", False, "OpenAI completions"),
        ("https://api.openai.com/v1", "openai", True, "OpenAI chat"),
        ("https://mine.openai.azure.com/openai/v1", None, True, "Azure OpenAI"),
        ("http://10.0.0.1:8000/v1", "vllm", False, "vLLM"),
        ("http://10.0.0.1:8000/v1", "vllm", True, "vLLM chat"),
        ("http://10.0.0.1:8000/v1", "llamacpp", False, "llama.cpp server"),
        ("http://10.0.0.1:8000/v1", "me", True, None),
        ("http://10.0.0.1:4000/v1", "openai", False, None),
        ("https://api.openai.com.example.org/v1", None, False, None),
        ("https://notopenrouter.ai/v1", None, False, None),
    ],
)
def test_a_profile_is_found(url: str, owner: str | None, chat: bool, name: str | None) -> None:
    found = profile_of(url, owner, chat)
    assert (None if found is None else found.name) == name
