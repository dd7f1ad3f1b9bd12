"""Write a small Llama model and its tokenizer as a GGUF file, which llama.cpp serves."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import gguf
import numpy as np
import numpy.typing as npt
from tokenizers import Tokenizer

from adapter.demo.vocabulary import END_ID

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
}


def write_gguf(model: Any, tokenizer: Tokenizer, path: Path, name: str) -> None:
    """Write the model with matrices as float16; its embedding must be tied to its output."""
    writer = gguf.GGUFWriter(path, "llama")
    writer.add_name(name)
    _add_shape(writer, model.config)
    _add_tokenizer(writer, tokenizer)
    for key, tensor in _tensors(model).items():
        writer.add_tensor(key, tensor)
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
    writer.add_file_type(gguf.LlamaFileType.MOSTLY_F16)


def _add_tokenizer(writer: gguf.GGUFWriter, tokenizer: Tokenizer) -> None:
    ids = tokenizer.get_vocab()
    tokens = sorted(ids, key=ids.__getitem__)
    types = [gguf.TokenType.NORMAL] * len(tokens)
    types[END_ID] = gguf.TokenType.CONTROL
    merges = json.loads(tokenizer.to_str())["model"]["merges"]
    writer.add_tokenizer_model("gpt2")
    writer.add_tokenizer_pre("smollm")
    writer.add_token_list(tokens)
    writer.add_token_types(types)
    writer.add_token_merges([" ".join(pair) for pair in merges])
    writer.add_bos_token_id(END_ID)
    writer.add_eos_token_id(END_ID)
    writer.add_add_bos_token(True)


def _tensors(model: Any) -> Mapping[str, npt.NDArray[Any]]:
    config = model.config
    heads = {"attn_q": config.num_attention_heads, "attn_k": config.num_key_value_heads}
    tensors = {}
    for key, value in model.state_dict().items():
        array = value.float().numpy()
        if key == "lm_head.weight":
            continue
        name = _OTHER_NAMES.get(key)
        if name is None:
            _, _, layer, rest = key.split(".", 3)
            short = _LAYER_NAMES[rest.removesuffix(".weight")]
            array = _rotary_order(array, heads[short]) if short in heads else array
            name = f"blk.{layer}.{short}.weight"
        tensors[name] = array.astype(np.float16 if array.ndim > 1 else np.float32)
    return tensors


def _rotary_order(array: npt.NDArray[Any], heads: int) -> npt.NDArray[Any]:
    """Reorder a projection's rows: llama.cpp rotates neighbours, transformers rotates halves."""
    rows, columns = array.shape
    paired = array.reshape(heads, 2, rows // heads // 2, columns)
    return paired.swapaxes(1, 2).reshape(array.shape)
