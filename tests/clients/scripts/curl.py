"""curl, with nothing around it."""

import json
import subprocess
import sys

from said import API_KEY, BASE_URL, MESSAGES, MODEL, PROMPT, TOKENS

PATHS = {"completions": {"prompt": PROMPT}, "chat": {"messages": MESSAGES}}


def curl(endpoint: str, stream: bool) -> str:
    path = "chat/completions" if endpoint == "chat" else endpoint
    body = PATHS[endpoint] | {
        "model": MODEL, "temperature": 0, "max_tokens": TOKENS, "stream": stream,
    }  # fmt: skip
    done = subprocess.run(
        [
            "curl", "--fail", "--silent", "--no-buffer", f"{BASE_URL}/{path}",
            "-H", "content-type: application/json", "-H", f"authorization: Bearer {API_KEY}",
            "-d", json.dumps(body),
        ],
        capture_output=True,
        text=True,
        check=True,
    )  # fmt: skip
    return done.stdout


def text(choice: dict) -> str:
    inner = choice.get("message") or choice.get("delta") or choice
    return inner.get("content") or inner.get("text") or ""


def whole(endpoint: str) -> str:
    return text(json.loads(curl(endpoint, False))["choices"][0])


def streamed(endpoint: str) -> str:
    *blocks, done = curl(endpoint, True).removesuffix("\n\n").split("\n\n")
    assert done == "data: [DONE]"
    chunks = [json.loads(block.removeprefix("data: ")) for block in blocks]
    return "".join(text(chunk["choices"][0]) for chunk in chunks)


first = subprocess.run(["curl", "--version"], capture_output=True, text=True, check=True).stdout
answer = {
    "version": first.split()[1],
    "complete": {endpoint: whole(endpoint) for endpoint in PATHS},
    "stream": {endpoint: streamed(endpoint) for endpoint in PATHS},
}
sys.stdout.write(json.dumps(answer) + "\n")
