"""Rows: a model's logits behind some tokens, and the sums that a bridge wants of them."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps.bridge import Masses, Sets, Tree

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
Floats = NDArray[np.float64]


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Logits of whole vocabularies, and ln Σ exp of each row in float64."""

    logits: "torch.Tensor"
    norms: "torch.Tensor"

    def some(self, lines: Ints) -> "Rows":
        """A copy of some rows; does not keep the others in memory."""
        index = _index(lines, self.norms)
        return Rows(self.logits.index_select(0, index), self.norms.index_select(0, index))

    def and_(self, more: "Rows") -> "Rows":
        """These rows, then others."""
        import torch

        both = torch.cat([self.logits, more.logits]), torch.cat([self.norms, more.norms])
        return Rows(*both)

    def chances(self, lines: Ints, ids: Ints) -> Floats:
        """ln p(ids[i]) in row lines[i]."""
        rows, columns = _index(lines, self.norms), _index(ids, self.norms)
        values = self.logits[rows, columns].double() - self.norms[rows]
        return np.asarray(values.cpu().numpy(), np.float64)

    def whole(self, lines: Ints) -> Floats:
        """ln p of every token, row by row."""
        some = self.some(lines)
        values = some.logits.double() - some.norms[:, None]
        return np.asarray(values.cpu().numpy(), np.float64)


def masses(rows: Rows, asked: Sequence[tuple[Sets, Ints, Tree]]) -> list[Masses]:
    """What a bridge wants at several places: one gather, one transfer for all of them.

    A place is its sets, the row behind each of its nodes (the trunk's end first), and its tree.
    """
    lines, ids = list[Ints](), list[Ints]()
    for sets, behind, tree in asked:
        tokens, parents = (np.array(of, np.int64) for of in (tree.tokens, tree.parents))
        lines += [np.repeat(behind[sets.nodes + 1], np.diff(sets.ptr)), behind[parents + 1]]
        ids += [sets.ids, tokens]
    values = rows.chances(np.concatenate(lines), np.concatenate(ids))
    parts = np.split(values, np.cumsum([len(part) for part in ids])[:-1])
    return [
        Masses(sets=_summed(parts[2 * j], sets.ptr), nodes=parts[2 * j + 1])
        for j, (sets, _, _) in enumerate(asked)
    ]


def norms(logits: "torch.Tensor") -> "torch.Tensor":
    """ln Σ exp of each row, summed in float64."""
    import torch

    logits = logits.float() if logits.itemsize < 4 else logits
    top = logits.amax(-1, keepdim=True)
    total = (logits - top).exp().sum(-1, dtype=torch.float64)
    return total.log() + top[:, 0].double()


def _summed(values: Floats, ptr: Ints) -> Floats:
    """ln Σ exp of values[ptr[j]:ptr[j + 1]]; −∞ for an empty sum."""
    lengths = np.diff(ptr)
    if bool((lengths == 1).all()):
        return values
    some = lengths > 0
    found = np.full(len(lengths), -np.inf)
    if some.any():
        starts = ptr[:-1][some]
        top = np.maximum.reduceat(values, starts)
        safe = np.where(np.isfinite(top), top, 0.0)
        total = np.add.reduceat(np.exp(values - np.repeat(safe, lengths[some])), starts)
        with np.errstate(divide="ignore"):
            found[some] = np.log(total) + safe
    return found


def _index(numbers: Ints, like: "torch.Tensor") -> "torch.Tensor":
    import torch

    return torch.from_numpy(np.ascontiguousarray(numbers)).to(like.device)
