"""Scoring: one model's forwards over a trunk and a small tree, with its KV cache kept."""

from typing import TYPE_CHECKING

import numpy as np

from adapter.pair.loading import LocalModel
from tokenizer_maps.bridge import Masses, Sets, Tree

if TYPE_CHECKING:
    import torch

_CHUNK = 256
"""Trunk tokens a prefill forward takes at most; bounds the size of the attention mask."""


class Scorer:
    """One model's reading of one text: append, branch, roll back.

    The cache holds the trunk only; branches are evaluated beside it and dropped again, so what
    comes back never depends on how the engine got to this trunk.
    """

    def __init__(self, model: LocalModel) -> None:
        from transformers import DynamicCache

        self._model = model
        self._cache = DynamicCache(config=model.network.config)
        self._cached: tuple[int, ...] = ()
        self._tree: Tree | None = None
        self._rows: torch.Tensor | None = None

    def evaluate(self, tree: Tree) -> None:
        """One forward over what is new in the trunk and over all branches.

        Keeps the log-probabilities after the trunk's end and after every branch token.
        """
        self._keep(tree.trunk)
        new = tree.trunk[len(self._cached) :]
        while len(new) > _CHUNK:
            self._forward(Tree(new[:_CHUNK], (), ()))
            new = new[_CHUNK:]
        self._rows = self._forward(Tree(new, tree.tokens, tree.parents))
        self._tree = tree

    def masses(self, sets: Sets) -> Masses:
        """The summed probabilities of each set and of each branch token, as natural logs."""
        import torch

        if self._rows is None or self._tree is None:
            raise RuntimeError("masses asked for before a tree was evaluated")
        rows, device = self._rows, self._rows.device
        lengths = np.diff(sets.ptr)
        owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        nodes = torch.from_numpy(np.repeat(sets.nodes + 1, lengths)).to(device)
        values = rows[nodes, torch.from_numpy(sets.ids).to(device)]
        tokens = torch.tensor(self._tree.tokens, dtype=torch.long, device=device)
        parents = torch.tensor(self._tree.parents, dtype=torch.long, device=device)
        return Masses(
            sets=_logsumexp(values, owner, len(lengths)).cpu().numpy(),
            nodes=rows[parents + 1, tokens].cpu().numpy(),
        )

    def _keep(self, trunk: tuple[int, ...]) -> None:
        """Roll the cache back to what it shares with `trunk`, less one token to evaluate."""
        shared = 0
        for ours, theirs in zip(self._cached, trunk[:-1], strict=False):
            if ours != theirs:
                break
            shared += 1
        self._crop(len(self._cached) - shared)
        self._cached = self._cached[:shared]

    def _crop(self, count: int) -> None:
        if count:
            self._cache.crop(-count)

    def _forward(self, tree: Tree) -> "torch.Tensor":
        """Log-probabilities after the trunk and each branch, [1 + branches, V] float64."""
        import torch

        device = self._model.network.device
        mask, positions = tree_mask(tree, len(self._cached))
        with torch.inference_mode():
            logits = self._model.network(
                input_ids=torch.tensor([tree.trunk + tree.tokens], device=device),
                attention_mask=mask.to(device, self._model.network.dtype),
                position_ids=positions.to(device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=1 + len(tree.tokens),
            ).logits[0]
            self._crop(len(tree.tokens))
            self._cached += tree.trunk
            logits = logits.double().masked_fill(self._model.blank, -torch.inf)
            return torch.log_softmax(logits, dim=-1)


def tree_mask(tree: Tree, past: int) -> "tuple[torch.Tensor, torch.Tensor]":
    """The 4-D additive attention mask and the position ids of a tree behind `past` tokens.

    Trunk tokens see all before them; a branch token sees the trunk, its ancestors and itself.
    """
    import torch

    length, total = len(tree.trunk), len(tree.trunk) + len(tree.tokens)
    seen = torch.zeros(total, past + total, dtype=torch.bool)
    seen[:, :past] = True
    seen[:length, past : past + length] = torch.ones(length, length).tril().bool()
    depths: list[int] = []
    for i, parent in enumerate(tree.parents):
        at = length + i
        seen[at, past : past + length] = True
        if parent >= 0:
            seen[at] |= seen[length + parent]
        seen[at, past + at] = True
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    mask = torch.zeros(seen.shape).masked_fill(~seen, torch.finfo(torch.float32).min)
    positions = torch.tensor([*range(past, past + length), *(past + length + d for d in depths)])
    return mask[None, None], positions[None]


def _logsumexp(values: "torch.Tensor", owner: "torch.Tensor", count: int) -> "torch.Tensor":
    """log Σ exp of the values of each owner; −∞ for an owner without values."""
    import torch

    top = torch.full((count,), -torch.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, owner, values, "amax")
    safe = torch.where(torch.isfinite(top), top, 0.0)
    total = torch.zeros_like(top).scatter_add(0, owner, torch.exp(values - safe[owner]))
    return torch.log(total) + safe
