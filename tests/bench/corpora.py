"""Text from installed packages, in pieces, a part of them held out."""

import ast
import random
import subprocess
import sys
import sysconfig
import zipfile
from collections.abc import Iterable
from importlib.metadata import distributions
from pathlib import Path
from pydoc_data.topics import topics
from typing import NamedTuple

CAP = 2_500_000
HELD_OUT = 0.12
DJANGO = "django==5.2.7"
LANGUAGES = ("ja", "ko", "ru", "zh_Hans", "zh_Hant")


class Corpus(NamedTuple):
    """Text to train on, text held out, and where both come from."""

    train: str
    held_out: str
    source: str


def markdown() -> Corpus:
    """The long descriptions of all installed packages."""
    found = {d.name: d.metadata.get_payload() for d in distributions()}
    pieces = [str(found[name]) for name in sorted(found)]
    return _corpus(pieces, f"long descriptions of {len(pieces)} installed packages (METADATA)")


def python() -> Corpus:
    """The standard library's modules."""
    files = sorted(Path(sysconfig.get_path("stdlib")).glob("*.py"))
    version = sys.version.partition(" ")[0]
    pieces = [file.read_text("utf-8", "replace") for file in files]
    return _corpus(pieces, f"modules of Python {version}'s standard library")


def english() -> Corpus:
    """The language reference as help() prints it."""
    version = sys.version.partition(" ")[0]
    return _corpus([topics[name] for name in sorted(topics)], f"Python {version}'s help() topics")


def multilingual(cache: Path) -> Corpus:
    """Django's translations to Chinese, Japanese, Korean and Russian; fetched once."""
    if not list(cache.glob("django-*.whl")):
        command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps"]
        subprocess.run([*command, "--dest", str(cache), DJANGO], check=True, capture_output=True)
    wheel = zipfile.ZipFile(next(cache.glob("django-*.whl")))
    names = [n for n in sorted(wheel.namelist()) if n.endswith(".po") and _language(n)]
    pieces = [_translations(wheel.read(name).decode()) for name in names]
    return _corpus(pieces, f"{DJANGO}: translations to {', '.join(LANGUAGES)}")


def _language(name: str) -> bool:
    return name.partition("/locale/")[2].partition("/")[0] in LANGUAGES


def _translations(text: str) -> str:
    """The msgstr entries of a gettext file, one a paragraph."""
    entries, current = [], False
    for line in text.splitlines():
        if line.startswith("msgstr"):
            current = True
            entries.append("")
        elif not line.startswith('"'):
            current = False
        if current and not line.startswith("#"):
            entries[-1] += ast.literal_eval(line[line.index('"') :])
    return "\n".join(entries[1:])


def _corpus(pieces: Iterable[str], source: str) -> Corpus:
    pieces = [piece for piece in pieces if piece]
    random.Random(0).shuffle(pieces)
    held_out = [pieces.pop()]
    size = min(CAP, sum(map(len, pieces)))
    while sum(map(len, held_out)) < HELD_OUT * size:
        held_out.append(pieces.pop())
    train = "\n\n".join(pieces)[:CAP]
    return Corpus(train, "\n\n".join(held_out), source)
