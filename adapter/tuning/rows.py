"""Rows of tokens as a training takes them, and batches of rows."""

from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

UNLEARNT = -100
"""The label that transformers leaves out of a loss."""


@dataclass(frozen=True, slots=True, eq=False)
class Rows:
    """Token ids end to end, which of them are learnt, and where each row starts (and the end)."""

    ids: npt.NDArray[np.int32]
    learnt: npt.NDArray[np.bool_]
    starts: npt.NDArray[np.int64]

    @classmethod
    def of(cls, rows: Iterable[tuple[Sequence[int], Sequence[bool]]]) -> "Rows":
        """Rows of ids, each id with whether it is learnt."""
        ids, learnt = [np.zeros(0, np.int32)], [np.zeros(0, np.bool_)]
        for tokens, marks in rows:
            ids.append(np.array(tokens, np.int32))
            learnt.append(np.array(marks, np.bool_))
        starts = np.cumsum([len(row) for row in ids])
        return cls(np.concatenate(ids), np.concatenate(learnt), starts)

    def __len__(self) -> int:
        return len(self.starts) - 1

    def __getitem__(self, index: int) -> dict[str, torch.Tensor]:
        here = slice(self.starts[index], self.starts[index + 1])
        ids = torch.from_numpy(self.ids[here].astype(np.int64))
        learnt = torch.from_numpy(self.learnt[here])
        return {"input_ids": ids, "labels": ids.where(learnt, UNLEARNT)}

    @property
    def tokens(self) -> int:
        """Tokens in all rows."""
        return len(self.ids)


def collate(rows: Sequence[dict[str, torch.Tensor]]) -> dict[str, torch.Tensor]:
    """One batch; what fills the shorter rows up is neither read nor learnt."""
    pad = torch.nn.utils.rnn.pad_sequence
    ids = [row["input_ids"] for row in rows]
    return {
        "input_ids": pad(ids, batch_first=True),
        "attention_mask": pad([torch.ones_like(i) for i in ids], batch_first=True),
        "labels": pad([row["labels"] for row in rows], batch_first=True, padding_value=UNLEARNT),
    }
