"""Tiny models and tokenizers, built once per test process: random, but peaked and context-bound."""

import atexit
import functools
import shutil
import tempfile
from dataclasses import dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import LlamaConfig, LlamaForCausalLM, PreTrainedTokenizerFast
from transformers.utils.logging import disable_progress_bar

from adapter.demo.export import write_gguf

disable_progress_bar()

END = "<|endoftext|>"
START = "<|bos|>"

_PROSE = """The harbour master kept a ledger of every ship, and wrote the weather into it.
It's a small town; the answer to most is the harbour. What is the capital? It isn't here.
In 1987 the tide took 12 boats. 東京の天気は晴れです。Über die Brücke. Ça va? 🙂 🚢 naïve café
"""
_CODE = """def main(argv: list[str]) -> int:\n    return 1 if argv else 0\n
class Ledger:\n    def __init__(self, size: int = 0) -> None:\n        self.size = size\n
for i in range(10):\n    print(i, i * i, "the", "and")\n"""

Tree = dict[str, torch.Tensor]


@dataclass(frozen=True)
class Tiny:
    """Directories of models: `upstream`, `expert` and `antiexpert` share one tokenizer.

    `other_*` is a pair on a different vocabulary; `gguf` is `upstream` for llama.cpp.
    """

    upstream: Path
    expert: Path
    antiexpert: Path
    other_expert: Path
    other_antiexpert: Path
    gguf: Path


@functools.cache
def tiny() -> Tiny:
    """All tiny models; removed when the process ends."""
    root = Path(tempfile.mkdtemp(prefix="tiny-models-"))
    atexit.register(shutil.rmtree, root, ignore_errors=True)
    one, two = train_tokenizer(_PROSE * 4, 400), train_tokenizer(_CODE * 4 + _PROSE, 340)
    upstream = make_model(len(one), seed=1, sharpness=5.0)
    antiexpert, other = make_model(len(one), seed=2), make_model(len(two), seed=3)
    made = Tiny(*(root / name for name in ("up", "exp", "anti", "oexp", "oanti", "up.gguf")))
    save(made.upstream, upstream, one)
    save(made.antiexpert, antiexpert, one)
    save(made.expert, nudged(antiexpert, seed=4), one)
    save(made.other_antiexpert, other, two)
    save(made.other_expert, nudged(other, seed=5), two)
    write_gguf(upstream, one.backend_tokenizer, made.gguf, pre="gpt-2", half=False)
    return made


def train_tokenizer(text: str, size: int) -> PreTrainedTokenizerFast:
    """A byte-level BPE tokenizer with an end and a start token, ids 0 and 1."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False)
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END, START],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(text.splitlines(keepends=True), trainer)
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token=END, bos_token=START)


def make_model(
    vocabulary: int, *, seed: int, sharpness: float = 3.0, width: int = 32
) -> LlamaForCausalLM:
    """A two-layer Llama whose next token depends on all before it, at far from equal odds.

    Sharper models have larger logits, and so more rounding error in float32.
    """
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=48,
        num_hidden_layers=2,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=512,
        initializer_range=0.08,
        tie_word_embeddings=False,
        bos_token_id=1,
        eos_token_id=0,
    )
    model = LlamaForCausalLM(config).eval()
    with torch.no_grad():
        model.lm_head.weight.mul_(sharpness)
        model.lm_head.weight[0].mul_(1.9)  # END wins now and then
    return model


def nudged(model: LlamaForCausalLM, *, seed: int, by: float = 0.02) -> LlamaForCausalLM:
    """A copy with a little noise on every weight: near enough to share a pair."""
    torch.manual_seed(seed)
    copy = LlamaForCausalLM(model.config).eval()
    noisy = {k: v + by * torch.randn_like(v) * v.std() for k, v in _state(model).items()}
    copy.load_state_dict(noisy)
    return copy


def save(path: Path, model: LlamaForCausalLM, tokenizer: PreTrainedTokenizerFast) -> None:
    """Model and tokenizer as a Hugging Face directory."""
    model.save_pretrained(path)
    tokenizer.save_pretrained(path)


def _state(model: LlamaForCausalLM) -> Tree:
    return {k: v.detach().float() for k, v in model.state_dict().items() if v.dim() > 0}
