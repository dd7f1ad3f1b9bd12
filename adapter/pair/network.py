"""Network: one loaded model, perhaps with LoRA adapters, that reads many texts in one forward."""

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from numpy.typing import NDArray

from adapter.errors import PairError
from adapter.pair import attention
from adapter.pair.attention import Pages, Part
from adapter.pair.pool import Pool
from adapter.pair.rows import Rows, norms
from adapter.pair.text import Text
from tokenizer_maps.bridge import Tree

if TYPE_CHECKING:
    import torch

Ints = NDArray[np.int64]

BASE = "__base__"
"""PEFT's name for the network without an adapter."""

_PROBE = 8  # tokens
_UNREADABLE = (AttributeError, IndexError, KeyError, RuntimeError, TypeError, ValueError)
_FAR, _FAR_HALF = 1e-2, 5.0  # nats between two ways to read them that are not the same
"""In bfloat16 some token of Qwen2.5-Coder-1.5B is 1.5 off; where the past is not seen it is 15."""


class NoRoom(Exception):
    """The pool has no slots left for a text."""


class Network:
    """Texts in one pool, and the forwards over what is new in them. For one thread."""

    def __init__(self, module: "torch.nn.Module", blank: "torch.Tensor") -> None:
        """``blank``: the rows of the output layer without a token.

        Raises PairError where the architecture cannot be read this way.
        """
        self._module: Any = module
        self._blank = blank
        self._device = blank.device
        self._mixed = hasattr(module, "peft_config")
        self._chunk = 256 if self._device.type == "cpu" else 1024
        # What has four dimensions transformers takes for finished; who sees whom is in the pages.
        self._no_mask = blank.new_ones((1, 1, 1, 1))
        self.texts: set[Text] = set()
        self.pool = Pool(0)
        self._probe()
        self.token_bytes = self.pool.token_bytes()
        self.texts, self.pool = set(), Pool(1 << 16)

    def text(self, adapter: str | None = None) -> Text:
        """A new text, with nothing read."""
        return Text(self.pool, adapter)

    def evaluate(self, text: Text, tree: Tree) -> None:
        """Read one text by itself. Raises NoRoom."""
        while part := self.prepare(text, tree, {text}):
            self.forward([part])

    def prepare(self, text: Text, tree: Tree, busy: set[Text]) -> Part | None:
        """What to read next of a text's tree, with slots; None where all is read.

        Makes room by clearing the texts that were not used for longest, but not the busy ones.
        Raises NoRoom, RuntimeError where the text was closed.
        """
        if text.closed:
            raise RuntimeError("this reader is closed")
        self.texts.add(text)
        text.aim(tree)
        if len(text.missing()) > 1:
            text.share(self.texts)
        tokens = text.missing()[: self._chunk]
        if not len(tokens):
            return None
        slots = self.pool.take(len(tokens))
        for other in sorted(self.texts - busy - {text}, key=lambda other: other.used):
            if slots is not None:
                break
            self.forget(other)
            slots = self.pool.take(len(tokens))
        if slots is None:
            raise NoRoom
        text.slots[tokens] = slots
        return Part(text, tokens)

    def forget(self, text: Text) -> None:
        """Give a text's slots back."""
        text.clear()
        self.texts.discard(text)

    def forward(self, parts: Sequence[Part]) -> list[int | None]:
        """Read the new tokens of several texts; one row of input an adapter.

        Returns the window of each layer, None where it sees everything.
        """
        adapters = list(dict.fromkeys(part.text.adapter for part in parts))
        width, at = _packed(parts, adapters)
        ids, positions = np.zeros((2, len(adapters) * width), np.int64)
        for part, places in zip(parts, at, strict=True):
            ids[places] = part.text.ids(part.tokens)
            positions[places] = part.text.positions[part.tokens]
        ends = [part.text.ends(part.tokens) for part in parts]
        wanted = [some[len(some) - len(end) :] for some, end in zip(at, ends, strict=True)]
        columns = np.unique(np.concatenate(wanted) % width)
        pages = Pages(self.pool, parts, at, ids.size, self._device)
        rows = self._read(
            ids.reshape(-1, width),
            adapters,
            position_ids=self._tensor(positions.reshape(-1, width)),
            logits_to_keep=self._tensor(columns),
            attention_mask=self._no_mask,
            pages=pages,
        )
        for part, end, some in zip(parts, ends, wanted, strict=True):
            if len(end):
                lines = some // width * len(columns) + np.searchsorted(columns, some % width)
                part.text.add(end, rows.some(lines))
        return pages.windows

    def _read(self, ids: Ints, adapters: Sequence[str | None], **options: Any) -> Rows:
        """The rows behind some tokens of the first adapter's line, then of the next one's."""
        import torch

        if self._mixed:
            options["adapter_names"] = [name or BASE for name in adapters]
        with torch.inference_mode():
            found = self._module(input_ids=self._tensor(ids), use_cache=False, **options)
            logits = found.logits.flatten(0, 1).masked_fill(self._blank, -torch.inf)
            return Rows(logits, norms(logits))

    def _tensor(self, numbers: Ints) -> "torch.Tensor":
        import torch

        return torch.from_numpy(numbers).to(self._device)

    def _probe(self) -> None:
        """Read a few tokens as transformers would, then as all texts are read from now on."""
        bare = self._module.get_base_model() if self._mixed else self._module
        config = bare.config.get_text_config(decoder=True)
        ids = np.arange(min(_PROBE, len(self._blank)))
        tree = Tree(tuple(ids.tolist()), (), ())
        texts = [self.text(name) for name in (None, *getattr(self._module, "peft_config", ()))]
        self.pool.most = len(ids) * len(texts)
        bare.set_attn_implementation("eager")  # the one that every architecture has whole
        plain = self._read(ids[None], [None], logits_to_keep=self._tensor(ids[-1:]))
        attention.register()
        bare.set_attn_implementation(attention.NAME)
        try:
            parts = [self.prepare(text, tree, set(texts)) for text in texts]
            windows = self.forward([part for part in parts if part])
            far = _distance(plain, texts[0].found())
        except _UNREADABLE as error:
            raise PairError(
                f"the pair cannot read the model, a {config.model_type}: {error}"
            ) from error
        kinds = _kinds(config, len(windows))
        seen = ["full_attention" if window is None else "sliding_attention" for window in windows]
        if seen != kinds or not far < (_FAR if self._module.dtype.itemsize >= 4 else _FAR_HALF):
            raise PairError(
                f"the pair cannot read models of the type {config.model_type}: their attention "
                "does not go through transformers' AttentionInterface"
            )


def _distance(left: Rows, right: Rows) -> float:
    """The largest difference in the first row, in nats; NaN for what is no number."""
    a, b = (rows.whole(np.zeros(1, np.int64)) for rows in (left, right))
    return float(np.abs(np.subtract(a, b, where=a != b, out=np.zeros_like(a))).max())


def _kinds(config: Any, layers: int) -> list[str]:
    """Whether each layer sees all or a window."""
    windowed = getattr(config, "sliding_window", None) is not None
    default = ["sliding_attention" if windowed else "full_attention"] * layers
    return list(getattr(config, "layer_types", None) or default)


def _packed(parts: Sequence[Part], adapters: Sequence[str | None]) -> tuple[int, list[Ints]]:
    """The width of the input, and the places of each part's tokens in it, flattened."""
    lengths = dict.fromkeys(adapters, 0)
    starts = list[int]()
    for part in parts:
        starts.append(lengths[part.text.adapter])
        lengths[part.text.adapter] += len(part.tokens)
    width = max(lengths.values())
    lines = [adapters.index(part.text.adapter) * width for part in parts]
    return width, [
        line + start + np.arange(len(part.tokens))
        for part, line, start in zip(parts, lines, starts, strict=True)
    ]
