"""adapter cache: what it prints, what it deletes, and its exit codes."""

import asyncio
import json
from pathlib import Path

import pytest
from typer.testing import CliRunner, Result

from adapter.cli import app
from adapter.cli.cache import CacheFailed
from cache import open_cache
from tests.support.redis_server import ACCOUNT, OPERATOR, RedisServer, needs_redis, redis_server
from tests.support.sockets import free_port

SETTINGS = """
models:
  m:
    upstream: {{base_url: "http://127.0.0.1:9/v1", model: m, tokenizer: "tiktoken:cl100k_base"}}
    pair: {{experts: {{e: org/e}}, antiexpert: org/a}}
cache: {{url: "{url}", secret_env: CACHE_SECRET, ttl: 1h}}
"""


def run(folder: Path, url: str, *words: str, **more: str) -> Result:
    file = folder / "adapter.yaml"
    file.write_text(SETTINGS.format(url=url))
    command, *options = words
    return CliRunner().invoke(app, ["cache", command, str(file), *options], **more)


def done(folder: Path, url: str, *words: str, **more: str) -> str:
    result = run(folder, url, *words, **more)
    assert result.exit_code == 0, (result.output, result.exception)
    return result.stdout


def failed(folder: Path, url: str, *words: str) -> str:
    """The message of a failure, which `main` prints in one line and ends with 1."""
    result = run(folder, url, *words)
    assert isinstance(result.exception, CacheFailed), result.output
    assert not any(part in str(result.exception) for part in (*ACCOUNT.split(":"), OPERATOR))
    return str(result.exception)


def fill(url: str, count: int) -> None:
    async def put() -> None:
        cache = open_cache(url, 10**6, 60)
        assert cache is not None
        for n in range(count):
            await cache.put(bytes([n]), b"value")
        assert cache.failures == 0
        await cache.close()

    asyncio.run(put())


@pytest.fixture(scope="module")
def server():
    with redis_server() as server:
        yield server


def test_a_file(tmp_path):
    url = "sqlite:///entries.db"
    assert json.loads(done(tmp_path, url, "stats", "--json"))["entries"] == 0
    assert done(tmp_path, url, "clear", "--yes") == "0 entries deleted\n"
    assert not (tmp_path / "entries.db").exists()  # the service is to make it, and to own it
    fill(f"sqlite:///{tmp_path}/entries.db", 3)
    shown = json.loads(done(tmp_path, url, "stats", "--json"))
    assert shown == {
        "address": f"sqlite:///{tmp_path}/entries.db",
        "entries": 3,
        "bytes": 3 * (5 + 256),
        "ttl": 3600.0,
        "size": 256 * 10**6,
    }
    assert "3 entries, 783 of 256,000,000 bytes" in done(tmp_path, url, "stats")
    assert run(tmp_path, url, "clear", input="n\n").exit_code == 1
    assert "3 entries deleted" in done(tmp_path, url, "clear", input="y\n")
    assert json.loads(done(tmp_path, url, "stats", "--json"))["entries"] == 0


@needs_redis
@pytest.mark.redis
def test_a_redis_is_cleared_by_an_operator_only(tmp_path, server: RedisServer, monkeypatch):
    url = server.url()
    fill(url, 5)
    assert done(tmp_path, url, "stats").startswith(f"redis://127.0.0.1:{server.port} answers")
    shown = json.loads(done(tmp_path, url, "stats", "--json"))
    assert (shown["entries"], shown["bytes"], shown["size"]) == (None, None, None)
    message = failed(tmp_path, url, "clear", "--yes")
    assert "this account may not SCAN" in message
    assert "--url-env" in message
    monkeypatch.setenv("OPERATOR", server.url(OPERATOR))
    cleared = done(tmp_path, url, "clear", "--yes", "--url-env", "OPERATOR")
    assert cleared == "5 entries deleted\n"
    assert "0 entries" in done(tmp_path, url, "clear", "--yes", "--url-env", "OPERATOR")


@needs_redis
@pytest.mark.redis
def test_a_redis_that_is_not_there_or_not_open_to_us(tmp_path, server: RedisServer, monkeypatch):
    monkeypatch.setattr("adapter.cli.cache._PAUSE", 0.0)
    for url in (f"redis://{ACCOUNT}@127.0.0.1:{free_port()}", server.url("adapter:wrong-one")):
        assert "does not answer, or refuses" in failed(tmp_path, url, "stats")
        assert "cannot be cleared" in failed(tmp_path, url, "clear", "--yes")


@pytest.mark.parametrize(
    ("url", "reason"), [("none", "have no cache"), ("memory://", "a restart clears it")]
)
@pytest.mark.parametrize("command", ["stats", "clear"])
def test_caches_that_no_other_process_can_see(tmp_path, url, reason, command):
    assert reason in failed(tmp_path, url, command)


def test_a_file_that_is_something_else(tmp_path):
    (tmp_path / "notes.txt").write_text("not a cache" * 100)
    assert "notes.txt" in failed(tmp_path, "sqlite:///notes.txt", "stats")


def test_a_redis_url_that_cannot_be_right(tmp_path):
    told = failed(tmp_path, f"redis://{ACCOUNT}@h?socket_timeout=9", "stats")
    assert told.startswith("a Redis URL may not set socket_timeout")


def test_wrong_usage(tmp_path):
    for words in (["stats"], ["empty", "x"], ["clear", "x", "--url-env", "NO_SUCH_VARIABLE"]):
        assert CliRunner().invoke(app, ["cache", *words]).exit_code == 2


@pytest.mark.parametrize("command", ["stats", "clear"])
def test_help_has_an_example(command):
    result = CliRunner().invoke(app, ["cache", command, "--help"])
    assert result.exit_code == 0
    assert "Example" in result.stdout
