"""Settings: file, environment, paths, and a readable line for every mistake."""

import json
from pathlib import Path

import pytest
import yaml

from adapter.errors import SettingsError
from adapter.settings import Settings, load_settings

DIGEST = "0123456789abcdef" * 4
KEY = {"name": "a", "sha256": DIGEST}


def minimal() -> dict:
    return {
        "models": {
            "m": {
                "upstream": {
                    "base_url": "http://127.0.0.1:9/v1/",
                    "model": "big",
                    "tokenizer": "hf:tokenizer",
                },
                "pair": {"experts": {"news": "./expert"}, "antiexpert": "org/small"},
            }
        }
    }


def changed(path: str, value: object) -> dict:
    """The minimal settings with one key set, by its dotted path."""
    data = minimal()
    *parents, last = path.split(".")
    inner = data
    for part in parents:
        inner = inner.setdefault(part, {})
    inner[last] = value
    return data


@pytest.fixture(autouse=True)
def folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A place with the files the minimal settings name."""
    (tmp_path / "expert").mkdir()
    (tmp_path / "tokenizer").mkdir()
    (tmp_path / "chat.jinja").write_text("{{ messages }}")
    monkeypatch.delenv("XDG_CACHE_HOME", raising=False)
    return tmp_path


def load(folder: Path, data: object, **overrides) -> Settings:
    file = folder / "adapter.yaml"
    file.write_text(data if isinstance(data, str) else yaml.safe_dump(data))
    return load_settings(file, {tuple(k.split("__")): v for k, v in overrides.items()})


def test_defaults_are_the_documented_ones(folder):
    settings = load(folder, minimal())
    model = settings.models["m"]
    assert model.upstream.base_url == "http://127.0.0.1:9/v1"
    assert (model.upstream.api, model.upstream.top_logprobs, model.upstream.timeout) == (
        "completions", 20, 30.0,
    )  # fmt: skip
    assert (model.pair.device, model.pair.dtype, model.pair.context) == ("auto", "auto", "refuse")
    assert (model.alpha, model.bridge, model.weights) == (1.0, "auto", {"news": 1.0})
    assert (model.clamp.offset, model.clamp.end) == (10.0, 2.0)
    assert settings.cache.url == "memory://"
    assert (settings.cache.ttl, settings.cache.size) == (7 * 86400, 256 * 10**6)
    limits = settings.limits
    assert (limits.alpha, limits.max_tokens, limits.top_logprobs, limits.calls_per_request) == (
        (0.0, 4.0), 1024, 20, 512,
    )  # fmt: skip
    service = settings.service
    assert (service.host, service.port, service.insecure) == ("127.0.0.1", 8080, False)
    assert (settings.log.level, settings.log.format) == ("info", "text")


def test_paths_are_relative_to_the_file(folder):
    templates = {"upstream": "chat.jinja", "antiexpert": "plain"}
    model = load(folder, changed("models.m.templates", templates)).models["m"]
    assert model.upstream.tokenizer == f"hf:{folder / 'tokenizer'}"
    assert model.pair.experts == {"news": str(folder / "expert")}
    assert model.pair.antiexpert == "org/small"
    assert model.templates.upstream == str(folder / "chat.jinja")
    assert (model.templates.expert, model.templates.antiexpert) == (None, "plain")


@pytest.mark.parametrize("kind", ["hf", "sentencepiece", "gguf"])
def test_tokenizers_may_be_files(folder, kind):
    (folder / "file").write_text("")
    model = load(folder, changed("models.m.upstream.tokenizer", f"{kind}:file")).models["m"]
    assert model.upstream.tokenizer == f"{kind}:{folder / 'file'}"


def test_without_a_file_paths_are_relative_to_the_working_directory(folder, monkeypatch):
    monkeypatch.chdir(folder)
    monkeypatch.setenv("ADAPTER_MODELS", json.dumps(minimal()["models"]))
    assert load_settings(None).models["m"].pair.experts["news"] == str(folder / "expert")


@pytest.mark.parametrize(
    ("weights", "complete"),
    [({}, {"a": 0.5, "b": 0.5}), ({"a": 2}, {"a": 2.0, "b": 0.5}), ({"a": 0, "b": 1}, None)],
)
def test_experts_without_a_weight_get_an_equal_part(folder, weights, complete):
    data = changed("models.m.pair.experts", {"a": "org/a", "b": "org/b"})
    data["models"]["m"]["weights"] = weights
    assert load(folder, data).models["m"].weights == (complete or weights)


@pytest.mark.parametrize(
    ("text", "seconds"), [("90s", 90), ("15m", 900), ("1.5h", 5400), (60, 60), ("2 d", 172800)]
)
def test_durations(folder, text, seconds):
    assert load(folder, changed("cache.ttl", text)).cache.ttl == seconds


@pytest.mark.parametrize(
    ("text", "count"), [("64kB", 64000), ("2MiB", 2 * 2**20), (4096, 4096), ("1GB", 10**9)]
)
def test_sizes(folder, text, count):
    assert load(folder, changed("cache.size", text)).cache.size == count
    found = load(folder, changed("models.m.pair.kv_memory", text)).models["m"].pair
    assert found.kv_memory == count


def test_the_environment_goes_before_the_file_and_overrides_before_both(folder, monkeypatch):
    data = minimal() | {"service": {"port": 1}, "cache": {"ttl": "1h"}}
    monkeypatch.setenv("ADAPTER_SERVICE__PORT", "2")
    monkeypatch.setenv("ADAPTER_CACHE__URL", "none")
    monkeypatch.setenv("ADAPTER_LIMITS__ALPHA", "[0, 2.5]")
    monkeypatch.setenv("ADAPTER_CACHE__SECRET_ENV", "CACHE_SECRET")
    settings = load(folder, data)
    assert (settings.service.port, settings.cache.url) == (2, "none")
    assert (settings.cache.ttl, settings.cache.secret_env) == (3600.0, "CACHE_SECRET")
    assert settings.limits.alpha == (0.0, 2.5)
    assert load(folder, data, service__port=3).service.port == 3


def test_settings_are_frozen(folder):
    settings = load(folder, minimal())
    with pytest.raises(ValueError, match="frozen"):
        settings.service.port = 1


def test_built_maps_are_kept_in_the_users_cache(folder, monkeypatch):
    settings = load(folder, minimal())
    assert settings.maps_directory == Path.home() / ".cache/adapter/maps"
    monkeypatch.setenv("XDG_CACHE_HOME", "/var/cache")
    assert settings.maps_directory == Path("/var/cache/adapter/maps")


def test_the_key_is_read_when_asked_for_and_never_kept(folder, monkeypatch):
    assert load(folder, minimal()).api_key("m") is None
    settings = load(folder, changed("models.m.upstream.api_key_env", "ADAPTER_TEST_KEY"))
    with pytest.raises(SettingsError, match=r"^models\.m\.upstream\.api_key_env: .*_KEY is not"):
        settings.api_key("m")
    monkeypatch.setenv("ADAPTER_TEST_KEY", "canary-7Q")
    again = load(folder, changed("models.m.upstream.api_key_env", "ADAPTER_TEST_KEY"))
    assert again.api_key("m") == "canary-7Q"
    assert "canary-7Q" not in repr(again) + again.model_dump_json()


def test_the_secret_of_cache_keys_is_read_in_the_same_way(folder, monkeypatch):
    assert load(folder, minimal()).cache_secret() is None
    settings = load(folder, changed("cache.secret_env", "CACHE_SECRET"))
    with pytest.raises(SettingsError, match=r"^cache\.secret_env: the variable CACHE_SECRET is"):
        settings.cache_secret()
    monkeypatch.setenv("CACHE_SECRET", "s")
    assert settings.cache_secret() == b"s"


@pytest.mark.parametrize("url", ["redis://u:canary-7Q@h:1/2", "rediss://:canary-7Q@h", "none"])
def test_a_cache_by_its_address(folder, monkeypatch, url):
    monkeypatch.setenv("ADAPTER_CACHE__URL", url)
    found = load(folder, minimal() | {"cache": {"secret_env": "CACHE_SECRET"}})
    assert found.cache.url == url
    assert "canary-7Q" not in repr(found) + str(found)


def test_a_cache_file_is_relative_to_the_settings(folder):
    for url, path in (("sqlite:///a/b.db", f"{folder}/a/b.db"), ("sqlite:////a/b.db", "/a/b.db")):
        found = load(folder, minimal() | {"cache": {"url": url, "secret_env": "CACHE_SECRET"}})
        assert found.cache.url == f"sqlite:///{path}"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.9.9.9", "::1", "localhost"])
def test_loopback_needs_no_guard(folder, host):
    assert load(folder, changed("service.host", host)).service.host == host


def test_keys_let_the_service_listen_anywhere(folder, monkeypatch):
    data = minimal() | {"service": {"host": "0.0.0.0"}, "keys": [KEY]}  # noqa: S104
    (key,) = load(folder, data).keys
    assert (key.name, key.tenant, key.per_minute, key.concurrency, key.money_per_day) == (
        "a", "a", None, None, None,
    )  # fmt: skip
    assert DIGEST not in repr(key)
    monkeypatch.setenv("ADAPTER_KEYS", json.dumps([KEY | {"name": "b", "tenant": "t"}]))
    assert [(k.name, k.tenant) for k in load(folder, data).keys] == [("b", "t")]


def test_another_host_must_be_allowed(folder):
    data = minimal() | {"service": {"host": "0.0.0.0", "insecure": True}}  # noqa: S104
    assert load(folder, data).service.insecure


BAD = [
    ("models", {}, "models: "),
    ("models", None, "models: "),
    ("models.m", 7, "models.m: "),
    ("models.m.upstream", {}, "models.m.upstream.base_url: "),
    ("models.m.upstream.base_url", "example.com/v1", "models.m.upstream.base_url: must be a URL"),
    ("models.m.upstream.base_url", "ftp://example.com", "models.m.upstream.base_url: must be"),
    ("models.m.upstream.base_url", "http://u:canary-7Q@h", "models.m.upstream.base_url: must not"),
    ("models.m.upstream.model", "", "models.m.upstream.model: "),
    ("models.m.upstream.api", "responses", "models.m.upstream.api: "),
    ("models.m.upstream.api_key_env", "canary-7Q", "models.m.upstream.api_key_env: must be the na"),
    ("models.m.upstream.tokenizer", "gpt2", "models.m.upstream.tokenizer: must be hf:PATH"),
    ("models.m.upstream.tokenizer", "hf:none", "models.m.upstream.tokenizer: there is no file"),
    ("models.m.upstream.top_logprobs", 0, "models.m.upstream.top_logprobs: "),
    ("models.m.upstream.timeout", 0, "models.m.upstream.timeout: "),
    ("models.m.upstream.timeout", ".inf", "models.m.upstream.timeout: "),
    (
        "models.m.upstream.base_ulr",
        "x",
        "models.m.upstream.base_ulr: unknown key; did you mean bas",
    ),
    ("models.m.pair.experts", {}, "models.m.pair.experts: "),
    ("models.m.pair.antiexpert", "", "models.m.pair.antiexpert: "),
    ("models.m.pair.dtype", "int8", "models.m.pair.dtype: "),
    ("models.m.pair.context", "cut", "models.m.pair.context: "),
    ("models.m.alpha", "strong", "models.m.alpha: "),
    ("models.m.alpha", 5, "models.m.alpha: 5.0 is outside limits.alpha, 0.0 to 4.0"),
    ("models.m.weights", {"news": -1}, "models.m.weights.news: -1.0 is outside limits.alpha"),
    (
        "models.m.weights",
        {"newz": 1},
        "models.m.weights: there is no expert 'newz'; did you mean n",
    ),
    ("models.m.bridge", "quick", "models.m.bridge: "),
    ("models.m.clamp", {"end": 0}, "models.m.clamp.end: "),
    ("models.m.templates", {"expert": "plain"}, "models.m.templates.expert: there is no file"),
    ("models.m.looking", {}, "models.m.looking: unknown key; did you mean lookahead?"),
    ("cache.url", "redis://u:canary-7Q@127.0.0.1", "cache: secret_env is missing"),
    ("cache.url", "sqlite:///here.db", "cache: secret_env is missing"),
    ("cache.url", "sqlite://here.db", "cache.url: a file's address is sqlite:///FILE"),
    ("cache.url", "http://u:canary-7Q@127.0.0.1", "cache.url: no cache has such an address"),
    ("cache.ttl", "7 weeks", "cache.ttl: must be a number with a unit of s, m, h, d"),
    ("cache.ttl", 0, "cache.ttl: "),
    ("cache.ttl", "now", "cache.ttl: must be a number"),
    ("cache.size", "-1MB", "cache.size: must be a number with a unit of B"),
    ("cache.sise", "1MB", "cache.sise: unknown key; did you mean size?"),
    ("limits.alpha", [4, 0], "limits.alpha: must be [lowest, highest]"),
    ("limits.alpha", [1], "limits.alpha"),
    ("limits.max_tokens", 0, "limits.max_tokens: "),
    ("limits.calls_per_request", "many", "limits.calls_per_request: "),
    ("limits.money_per_day", 0, "limits.money_per_day: "),
    ("limits.money_per_day", 5, "limits.money_per_day: models.m.upstream has no price"),
    ("limits.money_per_request", 5, "limits.money_per_request: models.m.upstream has no price"),
    ("models.m.upstream.max_concurrency", 0, "models.m.upstream.max_concurrency: "),
    ("service.port", 65536, "service.port: "),
    ("service.host", "0.0.0.0", "service: host '0.0.0.0' lets others in"),  # noqa: S104
    ("service.host", "example.com", "service: host 'example.com' lets others in"),
    ("service.max_concurrency", 0, "service.max_concurrency: "),
    ("log.level", "loud", "log.level: "),
    ("keys", [{"name": "a"}], "keys.0.sha256: "),
    ("keys", [{"sha256": DIGEST}], "keys.0.name: "),
    ("keys", [KEY | {"name": ""}], "keys.0.name: "),
    ("keys", [KEY | {"sha256": "canary-7Q"}], "keys.0.sha256: must be 64 hexadecimal digits"),
    ("keys", [KEY | {"tenent": "t"}], "keys.0.tenent: unknown key; did you mean tenant?"),
    ("keys", [KEY | {"per_minute": 0}], "keys.0.per_minute: "),
    ("keys", [KEY | {"per_minute": 10**6}], "keys.0.per_minute: "),
    ("keys", [KEY | {"concurrency": 0}], "keys.0.concurrency: "),
    ("keys", [KEY | {"money_per_day": 1}], "keys.0.money_per_day: models.m.upstream has no price"),
    ("keys", [KEY, {"name": "a", "sha256": "0" * 64}], "keys: two keys have the same name"),
    ("keys", [KEY, {"name": "b", "sha256": DIGEST.upper()}], "keys: two keys have the same sha"),
    ("modells", {}, "modells: unknown key; did you mean models?"),
]


@pytest.mark.parametrize(("path", "value", "line"), BAD)
def test_every_mistake_is_one_line_that_names_its_key(folder, path, value, line):
    with pytest.raises(SettingsError) as raised:
        load(folder, changed(path, value))
    lines = raised.value.message.splitlines()
    assert any(found.startswith(line) for found in lines), lines
    assert "canary-7Q" not in raised.value.message
    assert "pydantic" not in raised.value.message


def test_several_mistakes_are_several_lines(folder):
    data = changed("service.port", "x") | {"log": {"levle": "info"}}
    with pytest.raises(SettingsError) as raised:
        load(folder, data)
    assert len(raised.value.message.splitlines()) == 2


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("models: [", r"adapter\.yaml:1:\d+: "),
        ("- a\n- b\n", "must hold keys and values"),
        ("", "must hold keys and values"),
        ("a: \x00", "is not YAML"),
    ],
)
def test_files_that_are_no_settings(folder, text, message):
    with pytest.raises(SettingsError, match=message):
        load(folder, text)


def test_files_that_cannot_be_read(folder):
    with pytest.raises(SettingsError, match=r"none\.yaml: cannot be read: No such file"):
        load_settings(folder / "none.yaml")
    (folder / "latin.yaml").write_bytes(b"a: \xe9")
    with pytest.raises(SettingsError, match="is not UTF-8"):
        load_settings(folder / "latin.yaml")


@pytest.mark.parametrize(
    ("name", "message"),
    [
        ("ADAPTER_SERVICE__PROT", "did you mean ADAPTER_SERVICE__PORT?"),
        ("ADAPTER_CACHE", "did you mean ADAPTER_CACHE__"),
    ],
)
def test_unknown_variables_are_errors_that_name_the_nearest(folder, monkeypatch, name, message):
    monkeypatch.setenv(name, "canary-7Q")
    with pytest.raises(SettingsError) as raised:
        load(folder, minimal())
    assert raised.value.message.startswith(f"{name}: unknown variable; ")
    assert message in raised.value.message
    assert "canary-7Q" not in raised.value.message


def test_models_from_the_environment_must_be_json(folder, monkeypatch):
    monkeypatch.setenv("ADAPTER_MODELS", "{m: 1}")
    with pytest.raises(SettingsError, match=r"^ADAPTER_MODELS: is not JSON$"):
        load(folder, minimal())


def test_a_variable_below_something_that_is_no_section_does_not_hide_the_mistake(
    folder, monkeypatch
):
    monkeypatch.setenv("ADAPTER_SERVICE__PORT", "1")
    with pytest.raises(SettingsError, match=r"^service: "):
        load(folder, minimal() | {"service": "here"})
