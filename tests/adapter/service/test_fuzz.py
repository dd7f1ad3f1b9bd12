"""Bodies nobody would think of (F7): answered or refused in the official shape, never a failure."""

import json
import os
import re
import subprocess
from pathlib import Path

import httpx
import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from tests.support.openapi import body_schema, document

SCHEMATHESIS = os.environ.get("SCHEMATHESIS")
CHECKS = "not_a_server_error,response_schema_conformance,content_type_conformance"
PATHS = {
    "completions": {"prompt": "p"},
    "chat/completions": {"messages": [{"role": "user", "content": ""}]},
}

FIELDS = sorted(
    {
        *(field for path in PATHS for field in body_schema(f"/v1/{path}")["properties"]),
        *("alpha", "weights", "trace", "lookahead", "type", "text", "role", "content"),
        *("echo", "tools", "suffix", "best_of", "stream_options", "top_logprobs", "choices"),
    }
)
SCALARS = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=20),
    st.sampled_from(["m", "user", "text", "\ud800", "\x00", "1e999", 10**400, -0.0, "auto"]),
)  # fmt: skip
VALUES = st.recursive(
    SCALARS,
    lambda inner: (
        st.lists(inner, max_size=4)
        | st.dictionaries(st.sampled_from(FIELDS) | st.text(max_size=5), inner, max_size=4)
    ),
    max_leaves=12,
)


@pytest.mark.parametrize("path", PATHS)
@pytest.mark.parametrize("count", [100, pytest.param(1_000, marks=pytest.mark.full)])
def test_any_json_is_answered_or_refused(hello, path, count):
    """F7, by fields that are known with values that are not."""
    statuses = set()
    fixed = {"model": "m", "stream": True} | PATHS[path]
    fields = st.dictionaries(st.sampled_from(FIELDS), VALUES, max_size=3)
    with httpx.Client(base_url=f"{hello}/v1", timeout=30) as client:

        @settings(max_examples=count, deadline=None, suppress_health_check=[*HealthCheck])
        @given(st.one_of(VALUES, fields.map(lambda more: fixed | more)))
        def ask(body: object) -> None:
            data = json.dumps(body, allow_nan=True).encode()
            kind = {"content-type": "application/json"}
            answer = client.post(path, content=data, headers=kind)
            statuses.add(answer.status_code)
            assert answer.status_code < 500, data

        ask()
    assert statuses >= {200, 400}


@pytest.mark.skipif(
    SCHEMATHESIS is None,
    reason="SCHEMATHESIS does not name the executable; `python -m tests.clients schemathesis`",
)
@pytest.mark.parametrize("count", [50, pytest.param(1_000, marks=pytest.mark.full)])
def test_schemathesis_finds_nothing(hello, tmp_path, count):
    """F7, positive and negative examples of every operation."""
    passed, log = schemathesis(str(SCHEMATHESIS), hello, tmp_path, count)
    assert passed, log[-3_000:]


def schemathesis(program: str, address: str, folder: Path, count: int) -> tuple[bool, str]:
    """Whether it found nothing, and all that it said."""
    spec = folder / "openapi.json"
    spec.write_text(json.dumps(document()))
    done = subprocess.run(
        [
            program, "run", str(spec), "--url", address, "--mode", "all", "--checks", CHECKS,
            "--max-examples", str(count), "--phases", "coverage,fuzzing", "--no-color",
            "--generation-deterministic", "--suppress-health-check", "all",
        ],
        cwd=folder,
        capture_output=True,
        text=True,
        check=False,
    )  # fmt: skip
    assert re.search(r"4 (?:selected|operations)|Operations:.*4", done.stdout), done.stdout
    return done.returncode == 0, done.stdout + done.stderr
