"""Pool: the keys and values of one network, in slots of one token each."""

from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]

_FIRST = 1024
"""Slots a pool begins with; it grows by doubling."""


class Pool:
    """Slots for at most ``most`` tokens, handed out, shared by count and given back.

    A layer is a pair of tensors of the shape [slots, heads, size of a head].
    """

    def __init__(self, most: int) -> None:
        self.most = most
        self._counts = np.zeros(0, np.int32)
        self._free = np.zeros(0, np.int64)  # a stack
        self._layers: dict[int, tuple[torch.Tensor, torch.Tensor]] = {}

    @property
    def used(self) -> int:
        """Slots that hold something."""
        return len(self._counts) - len(self._free)

    def take(self, count: int) -> Ints | None:
        """So many slots, None where there are not as many."""
        while len(self._free) < count and len(self._counts) < self.most:
            self._grow(min(self.most, max(_FIRST, 2 * len(self._counts))))
        if len(self._free) < count:
            return None
        rest = len(self._free) - count
        taken, self._free = self._free[rest:][::-1].copy(), self._free[:rest]
        self._counts[taken] = 1
        return taken

    def share(self, slots: Ints) -> None:
        """One more text refers to these slots."""
        self._counts[slots] += 1

    def drop(self, slots: Ints) -> None:
        """One text less refers to these slots; those that nobody does are free."""
        self._counts[slots] -= 1
        self._free = np.concatenate([self._free, slots[self._counts[slots] == 0][::-1]])

    def write(self, layer: int, slots: "torch.Tensor", *kinds: "torch.Tensor") -> None:
        """Keys and values of a layer, [tokens, heads, size], into their slots."""
        if layer not in self._layers:
            size = len(self._counts)
            keys, values = (kind.new_empty((size, *kind.shape[1:])) for kind in kinds)
            self._layers[layer] = keys, values
        for whole, kind in zip(self._layers[layer], kinds, strict=True):
            whole.index_copy_(0, slots, kind)

    def read(
        self, layer: int, slots: "torch.Tensor | slice"
    ) -> "tuple[torch.Tensor, torch.Tensor]":
        """Keys and values of a layer at slots, [tokens, heads, size]."""
        keys, values = self._layers[layer]
        if isinstance(slots, slice):
            return keys[slots], values[slots]
        return keys.index_select(0, slots), values.index_select(0, slots)

    def token_bytes(self) -> int:
        """What a slot takes in all layers; known once every layer was written."""
        both = [kind for layer in self._layers.values() for kind in layer]
        return sum(kind[0].numel() * kind.itemsize for kind in both)

    def _grow(self, size: int) -> None:
        for layer, (keys, values) in self._layers.items():  # first: it may fail
            self._layers[layer] = _longer(keys, size), _longer(values, size)
        old = len(self._counts)
        self._counts = np.concatenate([self._counts, np.zeros(size - old, np.int32)])
        self._free = np.concatenate([np.arange(size - 1, old - 1, -1), self._free])


def _longer(whole: "torch.Tensor", size: int) -> "torch.Tensor":
    longer = whole.new_empty((size, *whole.shape[1:]))
    longer[: len(whole)] = whole
    return longer
