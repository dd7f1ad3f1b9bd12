"""Fifty prompts from this project's own licence, of many lengths and ends."""

from pathlib import Path

_TEXT = (Path(__file__).parents[2] / "LICENSE").read_text()

PROMPTS = tuple(_TEXT[at * 97 : at * 97 + 3 + at * 4] for at in range(1, 51))
