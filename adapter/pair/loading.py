"""Loading a local model from safetensors, never from pickles and never with code of its own."""

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, cast

from adapter.errors import PairError
from adapter.pair.lora import is_adapter
from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.loading import load_vocabulary
from tokenizer_maps.vocabulary import Kind, Vocabulary

if TYPE_CHECKING:
    import torch
    from transformers import PreTrainedModel

_PICKLED = (".bin", ".pt", ".pth", ".ckpt", ".pkl")
_UNLOADABLE = (OSError, ValueError, KeyError, RuntimeError, VocabularyError)
_FILES = ("*.json", "*.safetensors", "*.jinja", "*.txt", "*.model")


@dataclass(frozen=True, slots=True, eq=False)
class LocalModel:
    """A causal language model, its vocabulary and the ids that end a text for it.

    `blank` are rows of the output layer without a token; `window` the context in tokens;
    `adapter` is the LoRA adapter of the network that makes it this model.
    """

    name: str
    network: "PreTrainedModel" = field(repr=False)
    vocabulary: Vocabulary
    end: frozenset[int]
    blank: "torch.Tensor"
    window: int
    adapter: str | None = None


def choose_device(device: str) -> str:
    """`auto` is CUDA where there is one, else the CPU."""
    import torch

    return ("cuda" if torch.cuda.is_available() else "cpu") if device == "auto" else device


def choose_dtype(dtype: str, device: str) -> "torch.dtype":
    """`auto` is float32 on a CPU and bfloat16 on an accelerator; the pair always shares one."""
    import torch

    if dtype == "auto":
        return torch.float32 if device == "cpu" else torch.bfloat16
    return cast("torch.dtype", getattr(torch, dtype))


def load_model(name: str, device: str, dtype: str, revision: str | None = None) -> LocalModel:
    """The model in a directory, or of that name on the hub.

    Raises PairError where files are missing, pickled, or need code of their own.
    """
    import torch
    from safetensors import SafetensorError
    from transformers import AutoModelForCausalLM
    from transformers.utils.logging import disable_progress_bar

    disable_progress_bar()  # type: ignore[no-untyped-call]  # transformers leaves it untyped
    folder = find_folder(name, revision)
    _check(name, folder)
    device = choose_device(device)
    try:
        vocabulary = load_vocabulary(f"hf:{folder}")
        loaded: Any = AutoModelForCausalLM.from_pretrained(
            folder,
            dtype=choose_dtype(dtype, device),
            use_safetensors=True,
            trust_remote_code=False,
            local_files_only=True,
            attn_implementation="sdpa",
            output_loading_info=True,
        )
    except (*_UNLOADABLE, SafetensorError) as error:
        raise PairError(f"the pair's model '{name}' cannot be loaded: {error}") from error
    network, report = loaded
    if report["missing_keys"]:  # transformers would go on with random numbers
        missing = ", ".join(sorted(report["missing_keys"])[:3])
        raise PairError(f"the pair's model '{name}' lacks weights: {missing} ...")
    network = network.to(device).eval().requires_grad_(False)
    rows = network.config.vocab_size
    if rows < len(vocabulary.tokens):
        raise PairError(
            f"the pair's model '{name}' has {rows} output rows for a tokenizer of "
            f"{len(vocabulary.tokens)} tokens: model and tokenizer do not belong together"
        )
    kinds = (*vocabulary.kinds, *(Kind.NONE,) * (rows - len(vocabulary.kinds)))
    blank = torch.tensor([kind is Kind.NONE for kind in kinds], device=device)
    end = _end(vocabulary, network)
    return LocalModel(name, network, vocabulary, end, blank, _window(network.config))


def _window(config: Any) -> int:
    """The context in tokens.

    Rotations that change with the length of a text would make its beginning another one: a text
    must end before they do.
    """
    window: int = getattr(config, "max_position_embeddings", None) or 2**31
    rope = getattr(config, "rope_parameters", None) or {}
    if rope.get("rope_type") in ("dynamic", "longrope"):
        return min(window, rope.get("original_max_position_embeddings") or window)
    return window


def _end(vocabulary: Vocabulary, network: "PreTrainedModel") -> frozenset[int]:
    configured: Any = getattr(network.generation_config, "eos_token_id", None)
    if configured is None:
        return vocabulary.end
    return vocabulary.end | frozenset([configured] if isinstance(configured, int) else configured)


def find_folder(name: str, revision: str | None) -> Path:
    """A directory as it is; a hub name is fetched, weights in safetensors only.

    Raises PairError where there is neither.
    """
    path = Path(name)
    if path.is_dir():
        return path
    if path.is_absolute() or name.startswith("."):
        raise PairError(f"the pair's model '{name}' is not a directory; check the path")
    from huggingface_hub import snapshot_download
    from huggingface_hub.errors import HfHubHTTPError, HFValidationError, LocalEntryNotFoundError

    try:
        return Path(snapshot_download(name, revision=revision, allow_patterns=list(_FILES)))
    except (OSError, HfHubHTTPError, HFValidationError, LocalEntryNotFoundError) as error:
        raise PairError(
            f"the pair's model '{name}' is neither a directory here nor to be had from the hub; "
            "check the name, or the network"
        ) from error


def _check(name: str, folder: Path) -> None:
    if is_adapter(folder):
        raise PairError(
            f"the anti-expert '{name}' is a LoRA adapter; name the model it was trained on, and "
            "the adapter as an expert"
        )
    if not (folder / "config.json").exists():
        raise PairError(f"the pair's model '{name}' has no config.json; is it a model directory?")
    if not list(folder.glob("*.safetensors")):
        pickled = [p.name for p in folder.iterdir() if p.suffix in _PICKLED]
        raise PairError(
            f"the pair's model '{name}' has pickled weights ({', '.join(pickled)}), which can run "
            "code; convert them with save_pretrained(safe_serialization=True)"
            if pickled
            else f"the pair's model '{name}' has no *.safetensors file"
        )
    try:
        config = json.loads((folder / "config.json").read_bytes())
    except ValueError as error:
        raise PairError(f"the pair's model '{name}' has an unreadable config.json") from error
    if "auto_map" in config:
        raise PairError(f"the pair's model '{name}' brings code of its own, which is never run")
