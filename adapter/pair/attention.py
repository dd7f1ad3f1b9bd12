"""Attention over slots: each text's new tokens see that text's own keys and values, and no others.

All layers but attention work on every token by itself, so the new tokens of many texts go through
a network as one sequence; here they part.
"""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapter.errors import PairError
from adapter.pair.pool import Pool
from adapter.pair.text import Text

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]
Flags = NDArray[np.bool_]

NAME = "proxytune_slots"
"""What transformers calls this attention; see its AttentionInterface."""


@dataclass(frozen=True, slots=True, eq=False)
class Part:
    """New tokens of one text, by number, in one forward."""

    text: Text
    tokens: Ints


def register() -> None:
    """Make this attention known to transformers; without pages it is the usual one."""
    from transformers import AttentionInterface, AttentionMaskInterface
    from transformers.integrations.sdpa_attention import sdpa_attention_forward
    from transformers.masking_utils import sdpa_mask

    plain: Callable[..., tuple[Any, Any]] = sdpa_attention_forward

    def attend(
        module: Any, query: Any, key: Any, value: Any, mask: Any, **options: Any
    ) -> tuple[Any, Any]:
        pages: Pages | None = options.pop("pages", None)
        if pages is None:
            return plain(module, query, key, value, mask, **options)
        return pages.attend(module.layer_idx, query, key, value, options), None

    AttentionInterface.register(NAME, attend)
    AttentionMaskInterface.register(NAME, sdpa_mask)


class Pages:
    """Where the tokens of one forward stand: in its input, in the pool, and in their texts.

    ``at`` are their places in the flattened input. ``windows`` notes what the layers asked for.
    """

    def __init__(
        self, pool: Pool, parts: Sequence[Part], at: Sequence[Ints], size: int, device: Any
    ) -> None:
        """``size``: the places of the input, some of which may only be padding."""
        self._pool = pool
        slots = np.concatenate([part.text.slots[part.tokens] for part in parts])
        self._slots = _tensor(slots, device)
        self._at = _order(np.concatenate(at), size, device)
        sizes = [(len(part.tokens), int(part.tokens[-1]) + 1) for part in parts]
        self._groups = [
            _Group([parts[i] for i in group], [at[i] for i in group], size, device)
            for group in grouped(sizes)
        ]
        self.windows: list[int | None] = []

    def attend(
        self,
        layer: int,
        query: "torch.Tensor",
        key: "torch.Tensor",
        value: "torch.Tensor",
        options: Mapping[str, Any],
    ) -> "torch.Tensor":
        """What transformers' attention functions give: [rows, tokens, heads, size]."""
        window, scale = options.get("sliding_window"), _Scale.of(options)
        self.windows.append(window)
        new = (_taken(_flat(states), self._at) for states in (key, value))
        self._pool.write(layer, self._slots, *new)
        flat = _flat(query)
        outs = []
        for group in self._groups:
            keys, values = self._pool.read(layer, group.slots)
            outs.append(group.attend(flat, keys, values, group.mask(window, query.dtype), scale))
        found = outs[0]
        if len(outs) > 1 or self._groups[0].at is not None:
            found = flat.new_zeros((*flat.shape[:-1], value.shape[-1]))
            for group, out in zip(self._groups, outs, strict=True):
                found[group.at] = out
        return found.view(query.shape[0], query.shape[2], *found.shape[1:])


@dataclass(frozen=True, slots=True)
class _Scale:
    """How scores come from products: a factor, then for some models a soft cap."""

    factor: float | None
    cap: float | None

    @classmethod
    def of(cls, options: Mapping[str, Any]) -> "_Scale":
        """What a layer asks for. Raises PairError for what is not known here."""
        if options.get("s_aux") is not None:
            raise PairError("the pair cannot read models with attention sinks")
        return cls(options.get("scaling"), options.get("softcap"))


class _Group:
    """Texts of like size, padded to the largest: [texts, new tokens] × [texts, keys]."""

    def __init__(self, parts: Sequence[Part], at: Sequence[Ints], size: int, device: Any) -> None:
        self._parts, self._device = parts, device
        self._new = max(len(part.tokens) for part in parts)
        self._keys = max(int(part.tokens[-1]) + 1 for part in parts)
        queries = np.stack([_padded(places, self._new) for places in at])
        slots = np.stack([_padded(p.text.slots[: p.tokens[-1] + 1], self._keys) for p in parts])
        real = [i * self._new + np.arange(len(places)) for i, places in enumerate(at)]
        self.slots = _place(slots.ravel(), device)
        self.at = _order(np.concatenate(at), size, device)
        self._queries = _order(queries.ravel(), size, device)
        self._real = _order(np.concatenate(real), queries.size, device)
        self._masks: dict[int | None, torch.Tensor | None] = {}

    def mask(self, window: int | None, dtype: "torch.dtype") -> "torch.Tensor | None":
        """[texts, 1, new tokens, keys] to add to scores; None where all see everything."""
        if window not in self._masks:
            self._masks[window] = self._mask(window, dtype)
        return self._masks[window]

    def attend(
        self,
        query: "torch.Tensor",
        keys: "torch.Tensor",
        values: "torch.Tensor",
        mask: "torch.Tensor | None",
        scale: _Scale,
    ) -> "torch.Tensor":
        """[real new tokens, heads, size]; heads that share keys count as so many more tokens."""
        texts, new, few = len(self._parts), self._new, keys.shape[1]
        size, per = query.shape[-1], query.shape[1] // few
        asked = _taken(query, self._queries).view(texts, new, few, per, size)
        asked = asked.permute(0, 2, 3, 1, 4).reshape(texts, few, per * new, size)
        keys, values = (
            kind.view(texts, self._keys, *kind.shape[1:]).transpose(1, 2) for kind in (keys, values)
        )
        if mask is not None and per > 1:
            mask = mask.repeat(1, 1, per, 1)
        out = _attention(asked, keys, values, mask, scale)
        out = out.view(texts, few, per, new, -1).permute(0, 3, 1, 2, 4)
        return _taken(out.reshape(texts * new, few * per, -1), self._real)

    @cached_property
    def _seen(self) -> Flags:
        seen = np.zeros((len(self._parts), self._new, self._keys), np.bool_)
        seen[:, :, 0] = True  # what is only padding must see something
        for one, part in zip(seen, self._parts, strict=True):
            own = part.text.seen(part.tokens)
            one[: own.shape[0], : own.shape[1]] = own
        return seen

    def _mask(self, window: int | None, dtype: "torch.dtype") -> "torch.Tensor | None":
        import torch

        seen = self._seen
        if window is not None:
            places = [part.text.positions for part in self._parts]
            new = [where[part.tokens] for where, part in zip(places, self._parts, strict=True)]
            asking = np.stack([_padded(some, self._new) for some in new])
            asked = np.stack([_padded(where[: self._keys], self._keys) for where in places])
            seen = seen & (asking[:, :, None] - asked[:, None, :] < window)
        if seen.all():
            return None
        allowed = torch.from_numpy(seen).to(self._device)[:, None]
        mask = torch.zeros(allowed.shape, dtype=dtype, device=self._device)
        return mask.masked_fill_(~allowed, torch.finfo(dtype).min)


def grouped(sizes: Sequence[tuple[int, int]]) -> list[list[int]]:
    """Texts, by (new tokens, keys), in groups whose padding at most doubles the work."""
    groups = list[list[int]]()
    new = keys = work = 0
    for i in sorted(range(len(sizes)), key=lambda i: sizes[i]):
        new, keys = max(new, sizes[i][0]), max(keys, sizes[i][1])
        work += sizes[i][0] * sizes[i][1]
        if groups and new * keys * (len(groups[-1]) + 1) <= 2 * work + _SMALL:
            groups[-1].append(i)
        else:
            groups.append([i])
            (new, keys), work = sizes[i], sizes[i][0] * sizes[i][1]
    return groups


_SMALL = 4096
"""Work, in pairs of token and key, that another call costs."""


def _attention(
    query: "torch.Tensor",
    keys: "torch.Tensor",
    values: "torch.Tensor",
    mask: "torch.Tensor | None",
    scale: _Scale,
) -> "torch.Tensor":
    import torch
    from torch.nn.functional import scaled_dot_product_attention

    if not scale.cap:
        found: torch.Tensor = scaled_dot_product_attention(
            query, keys, values, attn_mask=mask, scale=scale.factor
        )
        return found
    factor = query.shape[-1] ** -0.5 if scale.factor is None else scale.factor
    scores = torch.tanh(query @ keys.transpose(2, 3) * factor / scale.cap) * scale.cap
    scores = scores if mask is None else scores + mask
    return scores.softmax(-1, dtype=torch.float32).to(query.dtype) @ values


def _flat(states: "torch.Tensor") -> "torch.Tensor":
    """[rows, heads, tokens, size] as [rows · tokens, heads, size]."""
    return states.transpose(1, 2).flatten(0, 1)


def _order(places: Ints, size: int, device: Any) -> "torch.Tensor | None":
    """An index; None where it would take everything as it is."""
    if len(places) == size and bool((places == np.arange(size)).all()):
        return None
    return _tensor(places, device)


def _place(slots: Ints, device: Any) -> "slice | torch.Tensor":
    """An index; a slice where one will do, because it copies nothing."""
    if bool((np.diff(slots) == 1).all()):
        return slice(int(slots[0]), int(slots[-1]) + 1)
    return _tensor(slots, device)


def _tensor(numbers: Ints, device: Any) -> "torch.Tensor":
    import torch

    return torch.from_numpy(numbers).to(device)


def _taken(states: "torch.Tensor", order: "torch.Tensor | None") -> "torch.Tensor":
    return states if order is None else states.index_select(0, order)


def _padded(numbers: Ints, length: int) -> Ints:
    """So many numbers, the first one again and again where there are too few."""
    return np.concatenate([numbers, np.full(length - len(numbers), numbers[0])])
