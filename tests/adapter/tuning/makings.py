"""What the tests of a tuning need: a tiny base, a corpus, and a command to kill."""

import os
import random
import signal
import subprocess
import sys
import time
from pathlib import Path

import torch
from safetensors.torch import load_file

from adapter.tuning.corpus import Corpus, Document
from tests.support.tiny import tiny

TEMPLATE = (
    "{% for m in messages %}<|bos|>{{ m.role }}\n{{ m.content }}<|endoftext|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|bos|>assistant\n{% endif %}"
)
_PATIENCE = 300.0


def base() -> str:
    """The directory of the base."""
    return str(tiny().antiexpert)


def texts(count: int = 40) -> list[str]:
    """Short sentences, no two of them alike."""
    rng = random.Random(7)
    return [f"The tide of {n} took {rng.randint(2, 99)} boats from town {n}." for n in range(count)]


def corpus(count: int = 40) -> Corpus:
    """The same as documents."""
    return Corpus(tuple(map(Document, texts(count))))


def write_corpus(folder: Path) -> Path:
    """The same as text files."""
    folder.mkdir()
    for number, text in enumerate(texts()):
        (folder / f"{number:02}.txt").write_text(text)
    return folder


def weights(folder: Path) -> dict[str, torch.Tensor]:
    """All tensors in the weight files of a directory, by name."""
    return {
        k: v for file in sorted(folder.glob("*.safetensors")) for k, v in load_file(file).items()
    }


def same(one: Path, other: Path) -> bool:
    """Whether two directories hold the same weights, to the last bit."""
    first, second = weights(one), weights(other)
    return first.keys() == second.keys() and all(torch.equal(first[k], second[k]) for k in first)


def command(*words: object) -> list[str]:
    """`adapter tune` in a process of its own."""
    return [sys.executable, "-m", "adapter.cli", "tune", *map(str, words)]


def killed(words: list[str], out: Path, step: int) -> None:
    """Start a tuning and kill it while its checkpoint at `step` is written, or soon after."""
    wanted = out / "checkpoints" / f"checkpoint-{step}"
    environment = {**os.environ, "OMP_NUM_THREADS": str(torch.get_num_threads())}
    process = subprocess.Popen(words, env=environment, stderr=subprocess.PIPE)
    end = time.monotonic() + _PATIENCE
    try:
        while not wanted.exists() and process.poll() is None and time.monotonic() < end:
            time.sleep(0.001)
        time.sleep(random.uniform(0, 0.03))
    finally:
        process.send_signal(signal.SIGKILL)
        _, said = process.communicate()
    assert process.returncode == -signal.SIGKILL, said.decode()[-2000:]
