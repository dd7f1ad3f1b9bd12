"""Pair: the loaded expert(s) and the anti-expert, sharing a tokenizer, a device and a worker."""

from collections.abc import Mapping
from concurrent.futures import ThreadPoolExecutor
from weakref import WeakSet

from adapter.errors import PairError
from adapter.pair.loading import LocalModel, load_model
from adapter.pair.reader import ANTIEXPERT, Reader, Window
from adapter.pair.scoring import Scorer
from tokenizer_maps.bridge import Bridge, Context
from tokenizer_maps.vocabulary import Vocabulary


class Pair:
    """Experts by name and the one anti-expert, evaluated by one worker thread."""

    def __init__(self, models: Mapping[str, LocalModel]) -> None:
        self._models = dict(models)
        self._reading: dict[str, WeakSet[Scorer]] = {name: WeakSet() for name in models}
        self._worker = ThreadPoolExecutor(max_workers=1, thread_name_prefix="pair")

    @classmethod
    def load(
        cls,
        experts: Mapping[str, str],
        antiexpert: str,
        device: str = "auto",
        dtype: str = "auto",
        revision: str | None = None,
    ) -> "Pair":
        """The pair from directories or hub names.

        Raises PairError where a model cannot be used or the tokenizers differ.
        """
        models = {ANTIEXPERT: load_model(antiexpert, device, dtype, revision)}
        for name, source in experts.items():
            models[name] = load_model(source, device, dtype, revision)
            if models[name].vocabulary.fingerprint != models[ANTIEXPERT].vocabulary.fingerprint:
                raise PairError(
                    f"expert '{name}' ({source}) and anti-expert ({antiexpert}) have different "
                    "tokenizers; an offset needs one model, tuned and untuned"
                )
        return cls(models)

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
        scorers = {
            name: Scorer(self._models[name], self._reading[name]) for name in (*weights, ANTIEXPERT)
        }
        window = Window(self.window, head)
        return Reader(scorers, bridge, contexts, weights, window, self._worker)

    def close(self) -> None:
        """End the worker; what is running finishes first."""
        self._worker.shutdown(cancel_futures=True)
