"""What a script is told and how it answers; imports nothing but the standard library."""

import json
import os
import sys
from importlib.metadata import version

BASE_URL = os.environ["CLIENT_BASE_URL"]
API_KEY = os.environ["CLIENT_API_KEY"]
MODEL = os.environ["CLIENT_MODEL"]
PROMPT = os.environ["CLIENT_PROMPT"]
TOKENS = int(os.environ["CLIENT_TOKENS"])
MESSAGES = [{"role": "user", "content": PROMPT}]


def say(package: str, **texts: dict[str, str]) -> None:
    """Texts by way of asking, each by endpoint: `completions` or `chat`."""
    sys.stdout.write(json.dumps({"version": version(package), **texts}) + "\n")
