"""Try other people's clients and suites on a running service.

``python -m tests.clients [NAME ...] [--cache FOLDER]``; each has an environment of its own, which
is made from the package registry the first time (2 GB for all of them) and kept in the folder.
"""

import argparse
import json
import os
import subprocess
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import httpx
from rich.console import Console
from rich.table import Table

from tests.clients.environments import environment
from tests.clients.stage import MODEL, Stage, stage
from tests.clients.suites import SUITES
from tests.support.keys import KEY, bearer

SCRIPTS = Path(__file__).with_name("scripts")
PROMPT = "Question: Who is the chancellor of Marvania in 1206?\nAnswer:"
TOKENS = 12


@dataclass(frozen=True)
class Client:
    """A script, and the packages it runs on."""

    script: str
    packages: tuple[str, ...]


CLIENTS = {
    "curl": Client("curl.py", ()),
    "openai 2": Client("openai_sdk.py", ("openai<3",)),
    "openai 3": Client("openai_sdk.py", ("openai>=3",)),
    "LangChain": Client("lang_chain.py", ("langchain-openai",)),
    "LlamaIndex": Client("llamaindex.py", ("llama-index-llms-openai-like",)),
    "llm": Client("llm_cli.py", ("llm",)),
    "LiteLLM": Client("litellm_sdk.py", ("litellm",)),
}


def main(argv: list[str]) -> int:
    """0 where all clients say what the service says, and all suites pass."""
    parser = argparse.ArgumentParser(prog="python -m tests.clients", description=__doc__)
    names = [*CLIENTS, *SUITES]
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--cache", type=Path, default=Path("~/.cache/adapter/clients").expanduser())
    args = parser.parse_args(argv)
    unknown = set(args.names) - set(names)
    if unknown:
        parser.error(f"there is no {', '.join(sorted(unknown))}; there is {', '.join(names)}")
    args.cache.mkdir(parents=True, exist_ok=True)
    chosen = args.names or names
    table = Table("client", "version", "complete", "stream")
    with stage() as running:
        expected = _expected(running)
        rows = [_row(name, args.cache, running, expected) for name in chosen]
    for row in rows:
        table.add_row(*row)
    Console().print(table)
    return int(any("FAILED" in cell for row in rows for cell in row))


def _row(
    name: str, cache: Path, running: Stage, expected: Mapping[str, str]
) -> tuple[str, str, str, str]:
    sys.stderr.write(f"{name} ...\n")
    if name in SUITES:
        verdict = SUITES[name](cache, running)
        if not verdict.passed:
            sys.stderr.write(verdict.log)
        return name, verdict.version, "passed" if verdict.passed else "FAILED", verdict.summary
    client = CLIENTS[name]
    python = environment(cache, client.packages)
    done = subprocess.run(
        [str(python), str(SCRIPTS / client.script)],
        env=os.environ | _told(running),
        capture_output=True,
        text=True,
        check=False,
    )
    if done.returncode:
        sys.stderr.write(done.stderr)
        return name, "", "FAILED", "FAILED"
    said = json.loads(done.stdout.splitlines()[-1])
    return name, said["version"], *(_verdict(said[way], expected) for way in ("complete", "stream"))


def _told(running: Stage) -> dict[str, str]:
    return {
        "CLIENT_BASE_URL": running.guarded,
        "CLIENT_API_KEY": KEY,
        "CLIENT_MODEL": MODEL,
        "CLIENT_PROMPT": PROMPT,
        "CLIENT_TOKENS": str(TOKENS),
        "PYTHONPATH": str(SCRIPTS),
    }


def _expected(running: Stage) -> dict[str, str]:
    """What the service says by itself, by endpoint."""
    asked = {"model": MODEL, "temperature": 0, "max_tokens": TOKENS}
    with httpx.Client(base_url=running.guarded, headers=bearer(KEY), timeout=60) as client:
        plain = client.post("completions", json=asked | {"prompt": PROMPT})
        turns = [{"role": "user", "content": PROMPT}]
        chat = client.post("chat/completions", json=asked | {"messages": turns})
    return {
        "completions": plain.raise_for_status().json()["choices"][0]["text"],
        "chat": chat.raise_for_status().json()["choices"][0]["message"]["content"],
    }


def _verdict(texts: Mapping[str, str], expected: Mapping[str, str]) -> str:
    """The ways of asking that gave the service's own words; others by name."""
    wrong = [way for way, text in texts.items() if text != expected[way.split()[0]]]
    return f"FAILED: {', '.join(wrong)}" if wrong else ", ".join(texts)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
