"""Scoring: one model's forwards over a trunk and a small tree, with its KV cache kept."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any
from weakref import WeakSet

import numpy as np

from adapter.pair.loading import LocalModel
from tokenizer_maps.bridge import Masses, Sets, Tree

if TYPE_CHECKING:
    import torch

_CHUNK = 256
"""Trunk tokens a prefill forward takes at most; bounds the size of the attention mask."""

_NOTHING = Tree((), (), ())


@dataclass(frozen=True, slots=True, eq=False)
class _Rows:
    """What the model says after the trunk's end (row 0) and after each branch token.

    `norms` are ln Σ exp of each row of `logits`, in float64.
    """

    logits: "torch.Tensor"
    norms: "torch.Tensor"

    def row(self, index: int) -> "_Rows":
        return _Rows(self.logits[index : index + 1], self.norms[index : index + 1])


class Scorer:
    """One model's reading of one text: append, branch, commit a branch, roll back.

    The cache holds the last tree: its trunk, then its branches, each seen by its descendants
    alone. A trunk that goes on along a branch keeps it. What comes back never depends on how the
    engine got to this tree.
    """

    def __init__(self, model: LocalModel, siblings: "WeakSet[Scorer] | None" = None) -> None:
        """`siblings`: the model's other scorers, whose prefixes a new text may begin with."""
        from transformers import DynamicCache

        self._model = model
        # Without a config every layer keeps all columns, also those of sliding-window models.
        self._cache = DynamicCache()
        self._tree = _NOTHING
        self._rows: _Rows | None = None
        self._siblings = siblings if siblings is not None else WeakSet()

    def evaluate(self, tree: Tree) -> None:
        """One forward over what is new in the trunk and among the branches."""
        known = len(self._tree.tokens)
        grown = tree.tokens[:known], tree.parents[:known]
        if tree.trunk != self._tree.trunk or grown != (self._tree.tokens, self._tree.parents):
            self._commit(tree.trunk)
            known = 0
        new = tree.trunk[len(self._tree.trunk) :]
        while len(new) > _CHUNK:
            self._grow(Tree(self._tree.trunk + new[:_CHUNK], (), ()), 0)
            new = new[_CHUNK:]
        if new or len(tree.tokens) > known:
            self._grow(tree, known)

    def masses(self, sets: Sets) -> Masses:
        """The summed probabilities of each set and of each branch token, as natural logs."""
        import torch

        if self._rows is None:
            raise RuntimeError("masses asked for before a tree was evaluated")
        device, rows = self._rows.norms.device, self._rows
        lengths = np.diff(sets.ptr)
        owner = torch.from_numpy(np.repeat(np.arange(len(lengths)), lengths)).to(device)
        nodes = torch.from_numpy(np.repeat(sets.nodes + 1, lengths)).to(device)
        ids = torch.from_numpy(sets.ids).to(device)
        values = rows.logits[nodes, ids].double() - rows.norms[nodes]
        tokens = torch.tensor(self._tree.tokens, dtype=torch.long, device=device)
        parents = torch.tensor(self._tree.parents, dtype=torch.long, device=device) + 1
        steps = rows.logits[parents, tokens].double() - rows.norms[parents]
        return Masses(
            sets=_logsumexp(values, owner, len(lengths)).cpu().numpy(), nodes=steps.cpu().numpy()
        )

    def _commit(self, trunk: tuple[int, ...]) -> None:
        """Keep of the cache what `trunk` begins with, along a branch where it goes there."""
        old, rows = self._tree, self._rows
        if not old.trunk:
            self._share(trunk)
            return
        shared = _common(old.trunk, trunk)
        branch = list(_branch(old, trunk[shared:])) if shared == len(old.trunk) else []
        kept = shared + len(branch)
        if kept == len(trunk) and shared < len(old.trunk):
            kept -= 1  # rolled back: no row is left of where the trunk ends now
        self._keep([*range(min(kept, shared)), *(len(old.trunk) + node for node in branch)])
        self._tree = Tree(trunk[:kept], (), ())
        at_end = kept == len(trunk) and rows is not None
        self._rows = rows.row(branch[-1] + 1 if branch else 0) if at_end and rows else None

    def _share(self, trunk: tuple[int, ...]) -> None:
        """Begin with the columns of the sibling that has most of `trunk`; none is copied."""
        from transformers.cache_utils import DynamicLayer

        def shared(other: Scorer) -> int:
            return _common(other._tree.trunk, trunk[:-1])

        best = max(self._siblings, key=shared, default=self)
        self._siblings.add(self)
        count = shared(best)
        layers: list[Any] = best._cache.layers if count else []
        for source in layers:
            layer: Any = DynamicLayer()  # type: ignore[no-untyped-call]  # transformers again
            layer.lazy_initialization(source.keys, source.values)
            layer.keys = source.keys[..., :count, :]
            layer.values = source.values[..., :count, :]
            self._cache.layers.append(layer)
        self._tree = Tree(trunk[:count], (), ())

    def _keep(self, columns: list[int]) -> None:
        import torch

        if columns == list(range(self._cache.get_seq_length())):
            return
        straight = columns == list(range(len(columns)))
        for layer in self._cache.layers:
            for name in ("keys", "values"):
                whole = getattr(layer, name)
                index = torch.tensor(columns, device=whole.device)
                some = whole[..., : len(columns), :] if straight else whole.index_select(-2, index)
                setattr(layer, name, some)

    def _grow(self, tree: Tree, known: int) -> None:
        """A forward over the trunk's new tokens and all branches but the first `known`."""
        import torch

        past, network = len(self._tree.trunk), self._model.network
        device, new = network.device, tree.trunk[past:]
        rest = Tree(new, tree.tokens, tree.parents)
        masks, positions = self._masks(rest, past, known)
        branches = tree.tokens[known:]
        with torch.inference_mode():
            logits = network(
                input_ids=torch.tensor([new + branches], device=device),
                attention_mask=masks,
                position_ids=positions.to(device),
                past_key_values=self._cache,
                use_cache=True,
                logits_to_keep=bool(new) + len(branches),
            ).logits[0]
            logits = logits.float() if logits.itemsize < 4 else logits
            logits = logits.masked_fill(self._model.blank, -torch.inf)
            rows = _Rows(logits, _norms(logits))
            if not new and self._rows is not None:
                rows = _Rows(
                    torch.cat([self._rows.logits, rows.logits]),
                    torch.cat([self._rows.norms, rows.norms]),
                )
        self._rows, self._tree = rows, tree

    def _masks(self, tree: Tree, past: int, known: int) -> "tuple[Any, torch.Tensor]":
        """The mask a model's layers need: one for all, or one for each of their kinds."""
        network = self._model.network
        config: Any = network.config.get_text_config(decoder=True)
        window = getattr(config, "sliding_window", None)
        kinds = set(getattr(config, "layer_types", None) or ())
        seen, positions = tree_mask(tree, past, known)
        full = additive(seen, network.dtype).to(network.device)
        if window is None or kinds == {"full_attention"}:
            return full, positions
        near = additive(seen & within(tree, past, known, window), network.dtype).to(network.device)
        # A model without kinds has the window in all its layers.
        return ({"full_attention": full, "sliding_attention": near} if kinds else near), positions


def tree_mask(tree: Tree, past: int, known: int = 0) -> "tuple[torch.Tensor, torch.Tensor]":
    """Who sees whom in a tree behind `past` tokens, and the position ids; for the new tokens.

    Trunk tokens see all before them; a branch token sees the trunk, its ancestors and itself. The
    first `known` branches are in the cache already, right behind the past.
    """
    import torch

    length, total = len(tree.trunk), len(tree.trunk) + len(tree.tokens)
    seen = torch.zeros(total, past + total, dtype=torch.bool)
    seen[:, :past] = True
    seen[:length, past : past + length] = torch.ones(length, length).tril().bool()
    for i, parent in enumerate(tree.parents):
        at = length + i
        seen[at, past : past + length] = True
        if parent >= 0:
            seen[at] |= seen[length + parent]
        seen[at, past + at] = True
    return seen[known:], torch.tensor([_positions(tree, past)[known:]])


def within(tree: Tree, past: int, known: int, window: int) -> "torch.Tensor":
    """Which keys are less than `window` positions before each new token, by position."""
    import torch

    keys = torch.tensor([*range(past), *_positions(tree, past)])
    return keys[past + known :, None] - keys[None, :] < window


def additive(seen: "torch.Tensor", dtype: "torch.dtype") -> "torch.Tensor":
    """A mask to add to attention scores, for one text and any number of heads."""
    import torch

    lowest = torch.finfo(dtype).min
    return torch.zeros(seen.shape, dtype=dtype).masked_fill(~seen, lowest)[None, None]


def _positions(tree: Tree, past: int) -> list[int]:
    """A branch token's position is its depth: siblings share one."""
    length, depths = past + len(tree.trunk), list[int]()
    for parent in tree.parents:
        depths.append(depths[parent] + 1 if parent >= 0 else 0)
    return [*range(past, length), *(length + depth for depth in depths)]


def _branch(tree: Tree, tokens: Sequence[int]) -> Iterator[int]:
    """The nodes along which `tokens` lead from the end of the trunk."""
    places = {edge: node for node, edge in enumerate(zip(tree.parents, tree.tokens, strict=True))}
    node = -1
    for token in tokens:
        if (node, token) not in places:
            return
        node = places[node, token]
        yield node


def _common(left: tuple[int, ...], right: tuple[int, ...]) -> int:
    """How many tokens both begin with; most often all of the shorter one."""
    count = min(len(left), len(right))
    if left[:count] == right[:count]:
        return count
    return next(i for i in range(count) if left[i] != right[i])


def _norms(logits: "torch.Tensor") -> "torch.Tensor":
    import torch

    top = logits.amax(-1, keepdim=True)
    total = (logits - top).exp().sum(-1, dtype=torch.float64)
    return total.log() + top[:, 0].double()


def _logsumexp(values: "torch.Tensor", owner: "torch.Tensor", count: int) -> "torch.Tensor":
    """log Σ exp of the values of each owner; −∞ for an owner without values."""
    import torch

    top = torch.full((count,), -torch.inf, dtype=values.dtype, device=values.device)
    top = top.scatter_reduce(0, owner, values, "amax")
    safe = torch.where(torch.isfinite(top), top, 0.0)
    total = torch.zeros_like(top).scatter_add(0, owner, torch.exp(values - safe[owner]))
    return torch.log(total) + safe
