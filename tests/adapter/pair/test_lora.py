"""LoRA experts on the anti-expert's weights, in one batch with it, against merged models."""

import json
import shutil

import numpy as np
import peft
import pytest
import torch
from peft import LoraConfig, PeftModelForCausalLM
from safetensors.torch import load_file, save_file
from transformers import AutoModelForCausalLM, AutoTokenizer

from adapter.errors import PairError
from adapter.pair.pair import Pair
from adapter.pair.reader import ANTIEXPERT, Place
from tests.adapter.pair.networks import counted
from tests.support.tiny import tiny
from tokenizer_maps import Context, IdentityBridge

TARGETS = ["q_proj", "v_proj", "down_proj", "up_proj"]


def train(folder, seed, rank=4):
    """A random adapter and the model it makes when merged; no base directory to be found again."""
    torch.manual_seed(seed)
    base = AutoModelForCausalLM.from_pretrained(tiny().antiexpert)
    config = LoraConfig(
        r=rank, target_modules=TARGETS, init_lora_weights=False, task_type="CAUSAL_LM"
    )
    tuned = PeftModelForCausalLM(base, config)
    tuned.save_pretrained(folder / "adapter")
    change(folder / "adapter", base_model_name_or_path="somewhere/that/was")
    tuned.merge_and_unload().save_pretrained(folder / "merged")
    AutoTokenizer.from_pretrained(tiny().antiexpert).save_pretrained(folder / "merged")
    return folder


def change(folder, **entries):
    file = folder / "adapter_config.json"
    file.write_text(json.dumps(json.loads(file.read_text()) | entries))


@pytest.fixture(scope="module")
def news(tmp_path_factory):
    return train(tmp_path_factory.mktemp("news"), 1)


@pytest.fixture(scope="module")
def law(tmp_path_factory):
    return train(tmp_path_factory.mktemp("law"), 2, rank=2)


@pytest.fixture
def copy(news, tmp_path):
    return shutil.copytree(news / "adapter", tmp_path / "copy")


def load(experts, **options):
    folders = {name: str(folder) for name, folder in experts.items()}
    return Pair.load(folders, str(tiny().antiexpert), "cpu", **options)


async def walk(pair, weights):
    """Offsets along a text, drafted and rolled back."""
    bridge = IdentityBridge(pair.vocabulary)
    context = Context((1,), b"The harbour master kept a ledger", ())
    reader = pair.reader(bridge, dict.fromkeys([*weights, ANTIEXPERT], context), weights, None)
    ids = pair.vocabulary.encode(b" of every ship")
    places = [Place(ids[:n], tuple(range(40)), (1 / 40,) * 40) for n in range(len(ids))]
    await reader.read(())
    found = [*await reader.offsets(places), *await reader.offsets([places[1]])]
    whole = await reader.whole(ids[:2])
    reader.close()
    return np.stack([one.delta for one in found]), whole


async def test_an_adapter_is_its_merged_model(news):
    lora, merged = load({"news": news / "adapter"}), load({"news": news / "merged"})
    weights = {"news": 1.0}
    (found, whole), (expected, its) = await walk(lora, weights), await walk(merged, weights)
    assert np.abs(expected).max() > 0.5
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(whole.delta, its.delta, atol=1e-4)
    lora.close()
    merged.close()


async def test_adapters_and_whole_models_mix(news, law):
    """Two adapters and the base are one forward; a full expert beside them is another."""
    full = {"plain": tiny().expert}
    lora = load({"news": news / "adapter", **full, "law": law / "adapter"})
    merged = load({"news": news / "merged", **full, "law": law / "merged"})
    weights = {"news": 0.7, "plain": 0.5, "law": -0.4}
    assert len(set(lora._networks.values())) == 2
    with counted(lora._networks["law"]) as lengths:
        found, whole = await walk(lora, weights)
    assert lengths[0] % 3 == 0  # a line each
    assert len(lengths) == 3  # the prompt, the draft, and for the whole what was rolled back
    expected, its = await walk(merged, weights)
    np.testing.assert_allclose(found, expected, atol=1e-4)
    np.testing.assert_allclose(whole.high, its.high, atol=1e-4)
    lora.close()
    merged.close()


async def test_half_precision_is_near_single(news):
    pairs = [load({"news": news / "adapter"}, dtype=dtype) for dtype in ("bfloat16", "float32")]
    assert all(p.dtype is torch.bfloat16 for p in pairs[0]._models[""].network.parameters())
    found, expected = [(await walk(pair, {"news": 1.0}))[0] for pair in pairs]
    assert np.median(np.abs(found - expected)) < 0.1
    for pair in pairs:
        pair.close()


def test_what_cannot_be_mixed_is_refused(copy):
    change(copy, use_dora=True)
    weights = load_file(copy / "adapter_model.safetensors")
    for name in [name for name in weights if "lora_B" in name]:
        vector = name.replace("lora_B.weight", "lora_magnitude_vector")
        weights[vector] = torch.ones(len(weights[name]))
    save_file(weights, copy / "adapter_model.safetensors", metadata={"format": "pt"})
    with pytest.raises(PairError, match=r"cannot read the model, a llama: .*DoRA"):
        load({"news": copy})


def test_pickled_adapters_are_refused(copy):
    (copy / "adapter_model.safetensors").rename(copy / "adapter_model.bin")
    with pytest.raises(PairError, match="pickled weights"):
        load({"news": copy})


def test_other_kinds_of_adapters_are_refused(copy):
    change(copy, peft_type="PROMPT_TUNING")
    with pytest.raises(PairError, match="PROMPT_TUNING, only LORA"):
        load({"news": copy})


def test_an_adapter_for_another_architecture_is_refused(copy):
    change(copy, target_modules=["c_attn"])
    with pytest.raises(PairError, match=r"cannot be used: .*c_attn"):
        load({"news": copy})


def test_an_adapter_of_another_rank_than_it_says_is_refused(copy):
    change(copy, r=3)
    with pytest.raises(PairError, match=r"cannot be used: .*size mismatch"):
        load({"news": copy})


def test_weights_for_layers_that_are_not_there_are_refused(copy):
    change(copy, target_modules=["q_proj"])
    with pytest.raises(PairError, match=r"does not fit the anti-expert: .*_proj"):
        load({"news": copy})


def test_a_base_that_can_be_compared_is(copy, tmp_path):
    base = tmp_path / "base"
    base.mkdir()
    (base / "config.json").write_text(json.dumps({"hidden_size": 8}))
    change(copy, base_model_name_or_path=str(base))
    with pytest.raises(PairError, match="another hidden_size"):
        load({"news": copy})


def test_an_adapter_with_another_tokenizer_is_refused(copy):
    for name in ("tokenizer.json", "tokenizer_config.json"):
        shutil.copy(tiny().other_antiexpert / name, copy)
    with pytest.raises(PairError, match="tokenizer is not the anti-expert's"):
        load({"news": copy})


def test_a_missing_package_is_named(copy, monkeypatch):
    monkeypatch.setitem(__import__("sys").modules, peft.__name__, None)
    with pytest.raises(PairError, match=r"proxytune-adapter\[lora\]"):
        load({"news": copy})
