"""Write a small Llama model and its tokenizer as a GGUF file, which llama.cpp serves."""

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

_LAYER_NAMES = {
    "input_layernorm": "attn_norm",
    "self_attn.q_proj": "attn_q",
    "self_attn.k_proj": "attn_k",
    "self_attn.v_proj": "attn_v",
    "self_attn.o_proj": "attn_output",
    "post_attention_layernorm": "ffn_norm",
    "mlp.gate_proj": "ffn_gate",
    "mlp.up_proj": "ffn_up",
    "mlp.down_proj": "ffn_down",
}
_OTHER_NAMES = {
    "model.embed_tokens.weight": "token_embd.weight",
    "model.norm.weight": "output_norm.weight",
    "lm_head.weight": "output.weight",
}


def write_gguf(
    model: Any, tokenizer: Tokenizer, path: Path, *, pre: str = "smollm", half: bool = True
) -> None:
    """Write the model, its matrices as float16 or all of it as float32.

    `pre` is llama.cpp's name for the tokenizer's pre-tokenizer.
    """
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(path.stem)
    _add_shape(writer, model.config)
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16 if half else gguf.LlamaFileType.ALL_F32)
    _add_tokenizer(writer, tokenizer, pre)
    writer.add_bos_token_id(model.config.bos_token_id)
    writer.add_eos_token_id(model.config.eos_token_id)
    for name, tensor in _tensors(model):
        writer.add_tensor(name, tensor.astype(np.float16 if half and tensor.ndim > 1 else "f4"))
    writer.write_header_to_file()
    writer.write_kv_data_to_file()
    writer.write_tensors_to_file()
    writer.close()


def _add_shape(writer: gguf.GGUFWriter, config: Any) -> None:
    writer.add_vocab_size(config.vocab_size)
    writer.add_context_length(config.max_position_embeddings)
    writer.add_embedding_length(config.hidden_size)
    writer.add_block_count(config.num_hidden_layers)
    writer.add_feed_forward_length(config.intermediate_size)
    writer.add_head_count(config.num_attention_heads)
    writer.add_head_count_kv(config.num_key_value_heads)
    writer.add_rope_dimension_count(config.hidden_size // config.num_attention_heads)
    writer.add_rope_freq_base(config.rope_parameters["rope_theta"])
    writer.add_layer_norm_rms_eps(config.rms_norm_eps)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer, pre: str) -> None:
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    special = {i for i, token in tokenizer.get_added_tokens_decoder().items() if token.special}
    normal, control = gguf.TokenType.NORMAL, gguf.TokenType.CONTROL
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre(pre)
    writer.add_token_list(tokens)
    writer.add_token_types([control if i in special else normal for i in range(len(tokens))])
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_add_bos_token(bool(tokenizer.encode("").ids))


def _tensors(model: Any) -> Iterator[tuple[str, npt.NDArray[Any]]]:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    for key, value in model.state_dict().items():
        array = value.float().numpy()
        if key in _OTHER_NAMES:
            if key != "lm_head.weight" or not config.tie_word_embeddings:
                yield _OTHER_NAMES[key], array
            continue
        _, _, layer, rest = key.split(".", 3)
        name = _LAYER_NAMES[rest.removesuffix(".weight")]
        if name in heads:
            array = _rotary_order(array, heads[name])
        yield f"blk.{layer}.{name}.weight", array


def _rotary_order(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Reorder a projection's rows: llama.cpp rotates neighbours, transformers rotates halves."""
    rows, columns = array.shape
    paired = array.reshape(heads, 2, rows // heads // 2, columns)
    return paired.swapaxes(1, 2).reshape(array.shape)
