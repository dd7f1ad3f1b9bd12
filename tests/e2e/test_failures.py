"""Every failure a user can reach ends in one clear message."""

import os
import subprocess
import sys

import httpx
import pytest
import yaml

from adapter.adapter import Adapter
from adapter.service.app import create_app
from tests.support.configured import settings_for
from tests.support.scripted import Reply, scripted
from tests.support.sockets import serving
from tests.support.tiny import tiny

PROMPT = "a prompt that must stay private"
CHOICE = {"index": 0, "text": "x", "finish_reason": "length"}


def answer(**choice):
    return {"choices": [CHOICE | choice], "usage": {"prompt_tokens": 1, "completion_tokens": 1}}


UPSTREAM = {
    "a wrong key": (Reply(401, {"error": {"message": PROMPT}}), 502, "upstream_refused", "key"),
    "an unknown model": (
        Reply(404, {"error": {"message": PROMPT}}),
        502,
        "upstream_refused",
        "model",
    ),
    "no logprobs": (
        Reply(200, answer(logprobs=None)),
        502,
        "upstream_malformed",
        "no log-probabilities",
    ),
    "no JSON": (Reply(200, b"<html>"), 502, "upstream_malformed", "no JSON"),
    "llama.cpp's shape": (
        Reply(200, answer(logprobs={"content": []})),
        502,
        "upstream_malformed",
        "llama.cpp",
    ),
    "no distribution": (
        Reply(
            200,
            answer(
                logprobs={
                    "tokens": ["token_id:5"],
                    "token_logprobs": [-0.1],
                    "top_logprobs": [{"token_id:5": -0.1, "token_id:6": -0.1}],
                }
            ),
        ),
        502,
        "upstream_malformed",
        "mass",
    ),
    "a refusal": (Reply(400, {"error": {"message": PROMPT}}), 502, "upstream_refused", "400"),
}


@pytest.mark.reliability("D7")
@pytest.mark.parametrize("fault", UPSTREAM)
def test_upstream_faults_over_http(fault):
    reply, status, code, reason = UPSTREAM[fault]
    with scripted(reply) as upstream:
        settings = settings_for(upstream.base_url)
        with serving(create_app(Adapter.from_settings(settings), settings)) as address:
            body = {"model": "tiny", "prompt": PROMPT, "max_tokens": 2}
            got = httpx.post(f"{address}/v1/completions", json=body)
            streamed = httpx.post(f"{address}/v1/completions", json=body | {"stream": True})
    error = got.json()["error"]
    assert set(error) == {"message", "type", "param", "code"}
    assert (got.status_code, error["code"]) == (status, code)
    assert reason in error["message"]
    assert PROMPT not in got.text
    assert streamed.status_code == status  # no stream is begun that cannot be steered


def broken(folder, change):
    """A settings file with one thing wrong."""
    models = tiny()
    model = {
        "upstream": {
            "base_url": "http://127.0.0.1:9/v1",
            "model": "m",
            "tokenizer": f"hf:{models.upstream}",
        },
        "pair": {"experts": {"news": str(models.expert)}, "antiexpert": str(models.antiexpert)},
    }
    settings = {"models": {"m": model}}
    change(settings, model)
    path = folder / "settings.yaml"
    path.write_text(yaml.safe_dump(settings))
    return path


STARTS = {
    "pair.expert": (lambda s, m: m["pair"].update(expert="x"), "did you mean experts"),
    "api_key_env": (lambda s, m: m["upstream"].update(api_key_env="NO_SUCH_KEY"), "NO_SUCH_KEY"),
    "missing expert": (
        lambda s, m: m["pair"]["experts"].update(news="./nowhere"),
        "not a directory",
    ),
    "another tokenizer": (
        lambda s, m: m["pair"]["experts"].update(news=str(tiny().other_expert)),
        "different tokenizers",
    ),
    "open host": (lambda s, m: s.update(service={"host": "0.0.0.0"}), "insecure"),  # noqa: S104
}


@pytest.mark.parametrize("fault", STARTS)
def test_what_cannot_start_says_why_in_one_line(fault, tmp_path):
    change, reason = STARTS[fault]
    path = broken(tmp_path, change)
    done = subprocess.run(
        [sys.executable, "-m", "adapter.cli", "serve", str(path)],
        capture_output=True,
        text=True,
        timeout=120,
        check=False,
        cwd=tmp_path,
        env={**os.environ, "HF_HUB_OFFLINE": "1"},
    )
    assert done.returncode == 1
    assert reason in done.stderr
    assert len(done.stderr.strip().splitlines()) == 1, done.stderr
