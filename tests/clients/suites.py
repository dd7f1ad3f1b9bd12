"""Public suites that a service of this kind should pass."""

import json
import os
import re
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

from tests.clients.environments import environment, sources
from tests.clients.stage import Stage

OPENAI = (
    "openai>=3",
    *("openai[aiohttp]", "pytest", "pytest-asyncio", "pytest-xdist", "rich", "dirty-equals"),
    *("inline-snapshot", "nest-asyncio", "time-machine"),
)
OPENAI_FILES = (
    "tests/api_resources/test_completions.py",
    "tests/api_resources/chat/test_completions.py",
)
OPENAI_SELECTION = "create and not all_params and not aiohttp"


@dataclass(frozen=True)
class Verdict:
    """What a suite said; `log` is its whole output."""

    version: str
    passed: bool
    summary: str
    log: str


def openai_tests(cache: Path, stage: Stage) -> Verdict:
    """The official client's own tests of both endpoints, in the selection that needs no extras."""
    python = environment(cache, OPENAI)
    version = _version(python, "openai")
    done = _run(
        [str(python), "-m", "pytest", "-n", "0", "-q", *OPENAI_FILES, "-k", OPENAI_SELECTION],
        cwd=sources(cache, "openai", version),
        TEST_API_BASE_URL=stage.open,
    )
    last = re.findall(r"^.*(?:passed|failed|error).* in .*$", done.stdout, re.MULTILINE)
    summary = last[-1].strip("= ") if last else "no tests ran"
    return Verdict(version, done.returncode == 0, summary, done.stdout)


def provider_check(cache: Path, stage: Stage) -> Verdict:
    """TrustedRouter's check of a provider, up to tier 4; it asks the model to say PONG."""
    package = "trustedrouter-provider-check"
    python = environment(cache, (package,))
    report = cache / "provider-check.json"
    command = [str(python.with_name(package)), "--base-url", stage.pong, "--model", "m"]
    done = _run([*command, "--tier", "4", "--json", str(report)], cwd=cache)
    said = json.loads(report.read_text()) if report.exists() else {}
    counts = json.dumps(said.get("summary", said.get("counts", {})))
    log = done.stdout
    return Verdict(_version(python, package), done.returncode == 0, counts, log)


def schemathesis(cache: Path, stage: Stage) -> Verdict:
    """1,000 examples for each operation, by our own test of it; on a service without models."""
    python = environment(cache, ("schemathesis",))
    done = _run(
        [sys.executable, "-m", "pytest", "-q", "tests/adapter/service/test_fuzz.py"],
        cwd=Path(__file__).parents[2],
        SCHEMATHESIS=str(python.with_name("schemathesis")),
    )
    summary = done.stdout.strip().splitlines()[-1]
    return Verdict(_version(python, "schemathesis"), done.returncode == 0, summary, done.stdout)


SUITES = {
    "openai-tests": openai_tests,
    "provider-check": provider_check,
    "schemathesis": schemathesis,
}


def _run(command: list[str], cwd: Path, **environ: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command,
        cwd=cwd,
        env=os.environ | environ,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        check=False,
    )


def _version(python: Path, package: str) -> str:
    code = f"from importlib.metadata import version; print(version({package!r}))"
    return subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, check=True
    ).stdout.strip()
