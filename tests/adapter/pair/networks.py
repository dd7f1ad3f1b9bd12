"""Tiny random networks of several architectures, and their slow twin: one fresh forward a text."""

from contextlib import contextmanager

import numpy as np
import torch
from transformers import (
    Gemma2Config,
    Gemma2ForCausalLM,
    Gemma3ForCausalLM,
    Gemma3TextConfig,
    GPT2Config,
    GPT2LMHeadModel,
    LlamaConfig,
    LlamaForCausalLM,
    MistralConfig,
    MistralForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
)

from tokenizer_maps.bridge import Tree

ROWS = 48
BLANK = torch.arange(ROWS) >= ROWS - 3  # the last rows of the output layer name no token
LIVE = ~BLANK.numpy()
KINDS = ("llama", "qwen2", "gpt2", "gemma3", "mistral", "gemma2")

SIZES = {
    "vocab_size": ROWS,
    "hidden_size": 32,
    "intermediate_size": 64,
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "max_position_embeddings": 128,
    "initializer_range": 0.08,  # peaked and bound to the context: a wrong mask shows
}
SLIDING = {"sliding_window": 6, "layer_types": ["sliding_attention"] * 2 + ["full_attention"]}


def network(kind, dtype=torch.float32):
    """A random model; every kind has something that the others do not."""
    torch.manual_seed(5)
    if kind == "gpt2":  # absolute positions: a wrong position id shows
        config = GPT2Config(
            vocab_size=ROWS,
            n_embd=32,
            n_layer=2,
            n_head=2,
            n_positions=128,
            initializer_range=0.08,
            bos_token_id=None,
            eos_token_id=None,
        )
        made = GPT2LMHeadModel(config)
    elif kind == "gemma3":  # layers of two kinds, one of which forgets
        made = Gemma3ForCausalLM(Gemma3TextConfig(**SIZES, head_dim=16, **SLIDING))
    elif kind == "gemma2":  # scores that are capped
        made = Gemma2ForCausalLM(
            Gemma2Config(**SIZES, head_dim=16, **SLIDING, attn_logit_softcapping=0.5)
        )
        made.set_attn_implementation("eager")  # the only one of transformers' that caps
    elif kind == "mistral":  # all layers forget
        made = MistralForCausalLM(MistralConfig(**SIZES, sliding_window=6))
    elif kind == "qwen2":
        made = Qwen2ForCausalLM(Qwen2Config(**SIZES))
    else:
        made = LlamaForCausalLM(LlamaConfig(**SIZES))
    return made.to(dtype).eval()


def plain(module, ids):
    """The slow twin: one fresh forward, ln p of each token behind the last id."""
    with torch.inference_mode():
        logits = module(torch.tensor([ids]), use_cache=False).logits[0, -1].double()
    return torch.log_softmax(logits.masked_fill(BLANK, -torch.inf), -1).numpy()


def path(tree, node):
    """The text up to a node, −1 for the end of the trunk."""
    tokens = []
    while node >= 0:
        tokens.append(tree.tokens[node])
        node = tree.parents[node]
    return tree.trunk + tuple(reversed(tokens))


def error(module, text, tree):
    """The largest difference of any row of a text from a fresh forward."""
    nodes = np.arange(-1, len(tree.tokens))
    rows = text.found().whole(text.line(nodes))
    assert np.isneginf(rows[:, ~LIVE]).all()
    expected = np.stack([plain(module, path(tree, node)) for node in nodes.tolist()])
    return float(np.abs(rows[:, LIVE] - expected[:, LIVE]).max())


@contextmanager
def counted(model):
    """The numbers of tokens of each forward."""
    lengths = []

    def note(module, args, kwargs):
        lengths.append(kwargs["input_ids"].numel())

    handle = model._module.register_forward_pre_hook(note, with_kwargs=True)
    try:
        yield lengths
    finally:
        handle.remove()


def some_tree(*branches, trunk):
    """A tree with branches given as (token, parent)."""
    return Tree(tuple(trunk), tuple(t for t, _ in branches), tuple(p for _, p in branches))
