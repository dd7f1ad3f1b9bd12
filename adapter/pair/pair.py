"""Pair: the loaded expert(s) and the anti-expert, sharing a tokenizer, a device and a worker."""

from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import replace

from adapter.errors import PairError
from adapter.pair.alone import Alone
from adapter.pair.engine import Engine
from adapter.pair.loading import LocalModel, find_folder, load_model
from adapter.pair.lora import attach, is_adapter
from adapter.pair.network import Network
from adapter.pair.reader import ANTIEXPERT, Reader, Window
from tokenizer_maps.bridge import Bridge, Context
from tokenizer_maps.vocabulary import Vocabulary

_MEMORY = 2 * 10**9  # bytes, on a CPU
_LEAST = 16  # tokens


class Pair:
    """Experts by name and the one anti-expert, read by one engine."""

    def __init__(self, models: Mapping[str, LocalModel], kv_memory: int | None = None) -> None:
        """`kv_memory`: bytes for the keys and values of all models together; None for 2 GB, on an
        accelerator half of what is free. Raises PairError where a model cannot be read.
        """
        self._models = dict(models)
        modules = {id(model.network): model for model in models.values()}
        networks = {key: Network(model.network, model.blank) for key, model in modules.items()}
        self._networks = {name: networks[id(model.network)] for name, model in models.items()}
        memory = kv_memory or _free(self._models[ANTIEXPERT])
        readers = Counter(self._networks.values())
        tokens = memory // sum(network.token_bytes for network in self._networks.values())
        if tokens < _LEAST:
            raise PairError(
                f"the pair's memory of {memory} bytes has room for {tokens} tokens; raise "
                "pair.kv_memory"
            )
        for network, count in readers.items():
            network.pool.most = tokens * count
        self._engine = Engine()

    @classmethod
    def load(
        cls,
        experts: Mapping[str, str],
        antiexpert: str,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
        *,
        kv_memory: int | None = None,
    ) -> "Pair":
        """The pair from directories or hub names; an expert may be a LoRA adapter.

        Raises PairError where a model cannot be used or the tokenizers differ.
        """
        base = load_model(antiexpert, device, dtype, revision)
        models, folders = {ANTIEXPERT: base}, {}
        for name, source in experts.items():
            folder = find_folder(source, revision)
            if is_adapter(folder):
                folders[name] = folder
                continue
            models[name] = load_model(source, device, dtype, revision)
            if models[name].vocabulary.fingerprint != base.vocabulary.fingerprint:
                raise PairError(
                    f"expert '{name}' ({source}) and anti-expert ({antiexpert}) have different "
                    "tokenizers; an offset needs one model, tuned and untuned"
                )
        if folders:
            adapters = {name: f"adapter{i}" for i, name in enumerate(folders)}
            mixed = attach(
                base.network, base.vocabulary, {adapters[name]: at for name, at in folders.items()}
            )
            models[ANTIEXPERT] = replace(base, network=mixed)
            for name, adapter in adapters.items():
                models[name] = replace(base, name=experts[name], network=mixed, adapter=adapter)
        return cls(models, kv_memory)

    @property
    def vocabulary(self) -> Vocabulary:
        """The tokenizer all models of the pair share."""
        return self._models[ANTIEXPERT].vocabulary

    @property
    def end(self) -> frozenset[int]:
        """The ids that end a text for any model of the pair."""
        return frozenset[int]().union(*(m.end for m in self._models.values()))

    @property
    def window(self) -> int:
        """The smallest context window of the pair, in tokens."""
        return min(m.window for m in self._models.values())

    def reader(
        self,
        bridge: Bridge,
        contexts: Mapping[str, Context],
        weights: Mapping[str, float],
        head: int | None,
    ) -> Reader:
        """A reading of one text by the weighted experts and the anti-expert.

        `contexts` has the rendering of each of them; `head` as in Window. Readings that are alive
        at the same time share what their texts have in common.
        """
        texts = {}
        for name in (*weights, ANTIEXPERT):
            network = self._networks[name]
            texts[name] = network, network.text(self._models[name].adapter)
        window = Window(self.window, head)
        return Reader(self._engine, texts, bridge, contexts, weights, window)

    def alone(self, name: str) -> Alone:
        """A reading by one of the models, an expert or ANTIEXPERT; it shares as readers do."""
        network = self._networks[name]
        return Alone(self._engine, network, network.text(self._models[name].adapter))

    def watch(self, batched: Callable[[int], None]) -> None:
        """Have somebody told, on the pair's worker, how many texts each forward reads."""
        self._engine.batched = batched

    def close(self) -> None:
        """End the worker; the round that runs finishes first, what waits is cancelled."""
        self._engine.close()


def _free(model: LocalModel) -> int:
    """The memory for keys and values that nobody set, in bytes."""
    import torch

    if model.blank.device.type != "cuda":
        return _MEMORY
    return int(torch.cuda.mem_get_info(model.blank.device)[0]) // 2
