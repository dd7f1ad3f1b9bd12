"""LoRA experts: adapters on the anti-expert's own weights, which are loaded once."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adapter.errors import PairError
from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Vocabulary

if TYPE_CHECKING:
    from transformers import PreTrainedModel

_CONFIG = "adapter_config.json"
_WEIGHTS = "adapter_model.safetensors"
_UNUSABLE = (OSError, ValueError, KeyError, RuntimeError, TypeError, VocabularyError)
_REASON = 300  # characters of what torch says, which names every weight
_SHAPE = ("model_type", "hidden_size", "num_hidden_layers", "num_attention_heads", "vocab_size")


def is_adapter(folder: Path) -> bool:
    """Whether a directory holds a PEFT adapter instead of a model."""
    return (folder / _CONFIG).exists()


def attach(
    network: "PreTrainedModel", vocabulary: Vocabulary, folders: Mapping[str, Path]
) -> "PreTrainedModel":
    """The network with an adapter of each name; `__base__` is still the network itself.

    Raises PairError where PEFT is missing, or an adapter is unsafe or does not fit the network.
    """
    try:
        from peft import LoraConfig, PeftModelForCausalLM
    except ImportError as error:
        raise PairError(
            "a LoRA expert needs the package peft: pip install 'proxytune-adapter[lora]'"
        ) from error
    mixed: Any = None
    for name, folder in folders.items():
        try:
            _check(folder, network.config, vocabulary)
            config = LoraConfig.from_pretrained(str(folder))
            config.inference_mode = True
            if mixed is None:
                mixed = PeftModelForCausalLM(network, config, name, autocast_adapter_dtype=False)
            else:
                mixed.add_adapter(name, config, autocast_adapter_dtype=False)
            found = mixed.load_adapter(
                str(folder), name, torch_device=str(network.device), autocast_adapter_dtype=False
            )
        except _UNUSABLE as error:
            reason = " ".join(str(error).split())[:_REASON]
            raise PairError(f"the LoRA expert '{folder}' cannot be used: {reason}") from error
        odd = [*found.missing_keys, *found.unexpected_keys]
        if odd:
            raise PairError(
                f"the LoRA expert '{folder}' does not fit the anti-expert: {', '.join(odd[:3])} ..."
            )
    mixed.to(network.dtype).eval().requires_grad_(False)
    return cast("PreTrainedModel", mixed)  # it is called like one


def _check(folder: Path, base: Any, vocabulary: Vocabulary) -> None:
    """What can be known before weights are read. The base's recorded path is often stale."""
    if not (folder / _WEIGHTS).exists():
        raise ValueError(f"there is no {_WEIGHTS}; pickled weights can run code and are refused")
    config = json.loads((folder / _CONFIG).read_bytes())
    if config.get("peft_type") != "LORA":
        raise ValueError(f"its type is {config.get('peft_type')}, only LORA is known")
    origin = Path(str(config.get("base_model_name_or_path"))) / "config.json"
    if origin.is_file():
        its = json.loads(origin.read_bytes())
        for key in _SHAPE:
            if key in its and its[key] != getattr(base, key, its[key]):
                raise ValueError(f"it was trained on a model of another {key}")
    if (folder / "tokenizer.json").exists():
        own = load_vocabulary(f"hf:{folder}")
        if own.fingerprint != vocabulary.fingerprint:
            raise ValueError("its tokenizer is not the anti-expert's")
