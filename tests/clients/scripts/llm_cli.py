"""Simon Willison's `llm`, on the command line."""

import os
import subprocess
import sys
import tempfile
from pathlib import Path

from said import API_KEY, BASE_URL, MODEL, PROMPT, TOKENS, say

MODELS = f"""
- {{model_id: mine-chat, model_name: {MODEL}, api_base: "{BASE_URL}", api_key_name: mine}}
- {{model_id: mine-completions, model_name: {MODEL}, api_base: "{BASE_URL}", api_key_name: mine,
   completion: true}}
"""


def ask(endpoint: str, *more: str) -> str:
    words = ["-m", f"mine-{endpoint}", "-o", "temperature", "0", "-o", "max_tokens", str(TOKENS)]
    done = subprocess.run(
        [sys.executable, "-m", "llm", PROMPT, *words, "--key", API_KEY, "--no-log", *more],
        env=os.environ | {"LLM_USER_PATH": folder},
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
        check=True,
    )
    return done.stdout.removesuffix("\n")


with tempfile.TemporaryDirectory() as folder:
    Path(folder, "extra-openai-models.yaml").write_text(MODELS)
    endpoints = ("completions", "chat")
    say(
        "llm",
        complete={endpoint: ask(endpoint, "--no-stream") for endpoint in endpoints},
        stream={endpoint: ask(endpoint) for endpoint in endpoints},
    )
