"""A pair without models: expert and anti-expert are functions of the ids read so far."""

from collections.abc import Sequence

import numpy as np

from adapter.pair.reader import Place
from tokenizer_maps.bridge import Offsets
from tokenizer_maps.steps import Whole


def distribution(size: int, seed: int, ids: Sequence[int], scale: float = 2.0) -> np.ndarray:
    """Log-probabilities of `size` tokens behind some ids, of which the last three matter."""
    random = np.random.default_rng((seed, *(i + 1 for i in ids[-3:])))
    logits = random.normal(size=size) * scale
    return logits - np.logaddexp.reduce(logits)


class SyntheticReader:
    """Reads a prompt and what follows; `strength`: how far apart expert and anti-expert are."""

    context_cut = False

    def __init__(self, prompt: Sequence[int], size: int, seed: int = 1, strength: float = 1.0):
        self.prompt, self.size, self.seed, self.strength = tuple(prompt), size, seed, strength
        self.places: list[int] = []

    async def read(self, generated: tuple[int, ...]) -> None:
        """Nothing to do beforehand."""

    async def offsets(self, places: Sequence[Place]) -> list[Offsets]:
        self.places.append(len(places))
        return [self._at(place) for place in places]

    async def whole(self, generated: tuple[int, ...]) -> Whole:
        anti, delta = self.anti(generated), self.delta(generated)
        return Whole(anti, delta, delta)

    def close(self) -> None:
        """Nothing is held."""

    def anti(self, generated: Sequence[int]) -> np.ndarray:
        return distribution(self.size, self.seed, (*self.prompt, *generated))

    def delta(self, generated: Sequence[int]) -> np.ndarray:
        tuned = self.anti(generated) + self.strength * distribution(
            self.size, self.seed + 1, (*self.prompt, *generated), scale=1.0
        )
        return tuned - np.logaddexp.reduce(tuned) - self.anti(generated)

    def _at(self, place: Place) -> Offsets:
        ids = np.array(place.candidates)
        delta = np.where(ids >= 0, self.delta(place.generated)[ids], 0.0)
        no = np.zeros(len(ids), np.bool_)
        return Offsets(delta, ids < 0, no, no, no)
