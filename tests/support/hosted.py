"""The tiny model that real servers are started with: heads as wide as vLLM wants them."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

from transformers import AutoTokenizer

from adapter.demo.export import write_gguf
from tests.support.chat_server import TEMPLATE
from tests.support.tiny import make_model, save, tiny


@dataclass(frozen=True)
class Hosted:
    """A directory, and the same for llama.cpp; the tokenizer is the tiny models' own."""

    folder: Path
    gguf: Path


@functools.cache
def hosted() -> Hosted:
    """Removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="tiny-hosted-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    made = Hosted(root / "model", root / "model.gguf")
    tokenizer = AutoTokenizer.from_pretrained(tiny().upstream)
    tokenizer.chat_template = TEMPLATE
    model = make_model(len(tokenizer), seed=1, sharpness=5.0, width=64)
    save(made.folder, model, tokenizer)
    write_gguf(model, tokenizer.backend_tokenizer, made.gguf, pre="gpt-2", half=False)
    return made
