"""The pair's files: what is loaded, and what is refused with its reason."""

import json
import shutil

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import LlamaConfig, LlamaForCausalLM

from adapter.errors import PairError
from adapter.pair.loading import _window, choose_dtype, load_model
from adapter.pair.pair import Pair
from tests.tokenizer_maps.worlds import digit_style, gpt2_style, write


def save(folder, tokenizer, eos, rows=800, seed=0):
    torch.manual_seed(seed)
    config = LlamaConfig(
        vocab_size=rows,
        hidden_size=16,
        intermediate_size=32,
        num_hidden_layers=1,
        num_attention_heads=2,
        num_key_value_heads=2,
        max_position_embeddings=64,
        eos_token_id=1,
        bos_token_id=0,
    )
    LlamaForCausalLM(config).save_pretrained(folder)
    write(folder, tokenizer, eos)
    return folder


@pytest.fixture(scope="module")
def directory(tmp_path_factory):
    return save(tmp_path_factory.mktemp("model"), digit_style(), "</s>")


@pytest.fixture
def copy(directory, tmp_path):
    return shutil.copytree(directory, tmp_path / "copy")


def load(folder):
    return load_model(str(folder), "cpu", "auto")


def test_a_directory_is_loaded(directory):
    model = load(directory)
    assert model.window == 64
    assert model.end == {1}
    assert model.blank.tolist() == [i >= len(model.vocabulary.tokens) for i in range(800)]
    assert model.network.dtype is torch.float32
    assert not model.network.training


def test_a_missing_directory_is_named(tmp_path):
    with pytest.raises(PairError, match=r"nowhere.*not a directory"):
        load(tmp_path / "nowhere")


def test_a_name_that_is_neither_here_nor_on_the_hub(monkeypatch):
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    with pytest.raises(PairError, match="neither a directory here nor"):
        load("nobody/nothing")


def test_pickled_weights_are_refused(copy):
    (copy / "model.safetensors").rename(copy / "pytorch_model.bin")
    with pytest.raises(PairError, match=r"pickled weights \(pytorch_model.bin\)"):
        load(copy)


def test_missing_weights_are_named(copy):
    (copy / "model.safetensors").unlink()
    with pytest.raises(PairError, match=r"no .*safetensors"):
        load(copy)


def test_no_model_directory(copy):
    (copy / "config.json").unlink()
    with pytest.raises(PairError, match=r"no config.json"):
        load(copy)


def test_an_unreadable_config(copy):
    (copy / "config.json").write_text("{")
    with pytest.raises(PairError, match=r"unreadable config.json"):
        load(copy)


def test_code_is_never_run(copy):
    config = json.loads((copy / "config.json").read_text())
    config["auto_map"] = {"AutoModelForCausalLM": "evil.Model"}
    (copy / "config.json").write_text(json.dumps(config))
    with pytest.raises(PairError, match="code of its own"):
        load(copy)


def test_a_lora_directory_is_no_antiexpert(copy):
    (copy / "adapter_config.json").write_text("{}")
    with pytest.raises(PairError, match="name the model it was trained on"):
        load(copy)


def test_cut_weights_are_refused(copy):
    data = (copy / "model.safetensors").read_bytes()
    (copy / "model.safetensors").write_bytes(data[: len(data) // 2])
    with pytest.raises(PairError, match="cannot be loaded"):
        load(copy)


def test_weights_that_lack_a_part_are_refused(copy):
    weights = load_file(copy / "model.safetensors")
    del weights["model.layers.0.mlp.up_proj.weight"]
    save_file(weights, copy / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PairError, match=r"lacks weights: .*up_proj"):
        load(copy)


def test_a_missing_tokenizer_is_refused(copy):
    (copy / "tokenizer.json").unlink()
    with pytest.raises(PairError, match="cannot be loaded"):
        load(copy)


def test_a_tokenizer_larger_than_the_model_is_refused(tmp_path):
    with pytest.raises(PairError, match="300 output rows"):
        load(save(tmp_path / "small", digit_style(), "</s>", rows=300))


def test_expert_and_antiexpert_must_share_their_tokenizer(directory, tmp_path):
    other = save(tmp_path / "other", gpt2_style(), "<|end|>")
    with pytest.raises(PairError, match="different tokenizers"):
        Pair.load({"news": str(other)}, str(directory), "cpu")


def test_a_pair_shares_dtype_and_window(directory):
    pair = Pair.load({"a": str(directory), "b": str(directory)}, str(directory), "cpu", "bfloat16")
    assert pair.window == 64
    assert pair.end == {1}
    pair.close()


@pytest.mark.parametrize(("kind", "window"), [("longrope", 16), ("yarn", 64)])
def test_a_window_ends_where_rotations_would_change(kind, window):
    rope = {
        "rope_type": kind,
        "rope_theta": 10000.0,
        "original_max_position_embeddings": 16,
        "factor": 4.0,
        "short_factor": [1.0] * 4,
        "long_factor": [2.0] * 4,
    }
    config = LlamaConfig(
        hidden_size=16, num_attention_heads=2, max_position_embeddings=64, rope_parameters=rope
    )
    assert _window(config) == window


def test_automatic_dtypes():
    assert choose_dtype("auto", "cpu") is torch.float32
    assert choose_dtype("auto", "cuda") is torch.bfloat16
    assert choose_dtype("float16", "cpu") is torch.float16
