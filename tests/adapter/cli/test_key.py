"""adapter key: what it prints fits the settings, and lets in."""

import hashlib
import json

import httpx
from typer.testing import CliRunner

from adapter.cli import app
from adapter.service.app import create_app
from adapter.settings import KeySettings
from tests.support.keys import bearer
from tests.support.scripted_adapter import ScriptedAdapter
from tests.support.sockets import serving


def made(*words: str) -> str:
    done = CliRunner().invoke(app, ["key", *words])
    assert done.exit_code == 0
    return done.output


def test_the_key_it_makes_lets_in(settings, monkeypatch):
    one, two = (json.loads(made("--json")) for _ in range(2))
    assert one["key"] != two["key"]
    key = KeySettings(name="a", sha256=one["sha256"])
    guarded = settings.model_copy(update={"keys": (key,)})
    with serving(create_app(ScriptedAdapter(), guarded)) as address:
        statuses = [
            httpx.get(f"{address}/v1/models", headers=bearer(k["key"])).status_code
            for k in (one, two)
        ]
        assert statuses == [200, 401]
        words = ["complete", "--url", address, "--model", "m", "p"]
        monkeypatch.setenv("SERVICE_KEY", one["key"])
        assert CliRunner().invoke(app, [*words, "--api-key-env", "SERVICE_KEY"]).exit_code == 0
        assert CliRunner().invoke(app, words).exit_code == 1
        missing = CliRunner().invoke(app, [*words, "--api-key-env", "NO_SUCH"])
    assert (missing.exit_code, "NO_SUCH is not set" in missing.output) == (2, True)


def test_for_people_it_prints_two_lines():
    key, digest = (line.split()[1] for line in made().splitlines())
    assert hashlib.sha256(key.encode()).hexdigest() == digest
