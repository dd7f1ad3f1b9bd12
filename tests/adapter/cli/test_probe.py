"""adapter probe: what it prints and keeps, and how it fails."""

import json

import pytest
import yaml

from adapter.cli import main
from tests.support.configured import settings_for
from tests.support.model_server import model_server
from tests.support.tiny import tiny
from tests.support.twisted import twisted


@pytest.fixture(scope="module")
def server():
    with model_server(tiny().upstream, key="sk-secret") as server:
        yield server


@pytest.fixture
def run(monkeypatch, capsys, tmp_path):
    """Runs the command line; gives exit code, stdout and stderr."""
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    monkeypatch.setenv("KEY", "sk-secret")
    monkeypatch.setenv("COLUMNS", "140")

    def run(*words: str) -> tuple[int, str, str]:
        monkeypatch.setattr("sys.argv", ["adapter", "probe", *words])
        with pytest.raises(SystemExit) as done:
            main()
        captured = capsys.readouterr()
        return int(done.value.code or 0), captured.out, captured.err

    return run


def test_a_table_of_what_was_found(run, server) -> None:
    server.requests.clear()
    code, out, err = run(
        server.base_url, "--api-key-env", "KEY", "--tokenizer", f"hf:{tiny().upstream}"
    )
    assert (code, out.count("measured")) == (0, 18)
    for words in ("tier: A, exact at every position", "use: api: completions", "calls made: 19"):
        assert words in out
    assert "at most 25 calls" in err
    assert len(server.requests) == 18


def test_json_is_the_record_that_is_kept(run, server, tmp_path) -> None:
    code, out, _ = run(server.base_url, "--api-key-env", "KEY", "--json")
    (kept,) = (tmp_path / "adapter" / "upstreams").iterdir()
    told = json.loads(kept.read_text())
    assert told.pop("version") == 1
    assert (code, json.loads(out)) == (0, told)
    assert "sk-secret" not in kept.read_text()
    assert "capital" not in kept.read_text()


def test_a_model_of_the_settings(run, server, tmp_path) -> None:
    settings = settings_for(server.base_url, upstream={"api_key_env": "KEY", "api": "auto"})
    file = tmp_path / "s.yaml"
    file.write_text(yaml.safe_dump(json.loads(settings.model_dump_json())))
    code, out, _ = run(str(file), "--json")
    assert (code, json.loads(out)["api"]) == (0, "completions")
    code, _, err = run(str(file), "--model", "other")
    assert (code, "name one with --model: tiny" in " ".join(err.split())) == (2, True)


def test_what_cannot_be_steered_is_exit_code_1_with_the_reason(run, server) -> None:
    with twisted(server, asked=lambda body: body | {"logprobs": None}) as twist:
        code, out, err = run(twist.base_url)
    assert code == 1
    assert "tier: D, impossible" in out
    assert "it cannot be steered: it gives no log-probabilities" in err


@pytest.mark.parametrize(
    ("words", "code", "message"),
    [
        (("http://127.0.0.1:1/v1",), 1, "is the server running"),
        (("{url}",), 1, "does not accept the key: check the API key (--api-key-env)"),
        (("{url}", "--model", "other", "--api-key-env", "KEY"), 1, "no model 'other'"),
        (("{url}", "--api-key-env", "NO_KEY"), 1, "the variable NO_KEY is not set"),
        (("nowhere.yaml",), 1, "nowhere.yaml: cannot be read"),
        (("nowhere.yaml", "--tokenizer", "hf:x"), 2, "go with a URL"),
        (("{url}", "--api-key-env", "KEY", "--tokenizer", "hf:/nowhere"), 1, "tokenizer: "),
    ],
)
def test_failures_say_what_to_do(run, server, words, code, message) -> None:
    found, _, err = run(*(word.format(url=server.base_url) for word in words))
    assert found == code
    assert message in " ".join(err.replace("│", " ").split())
