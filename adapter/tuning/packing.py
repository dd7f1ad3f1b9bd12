"""Continued pre-training: documents end to end, cut into rows of one length."""

from collections.abc import Iterable

import numpy as np

from adapter.tuning.rows import Rows
from tokenizer_maps.vocabulary import Vocabulary


def pack(texts: Iterable[str], vocabulary: Vocabulary, length: int) -> Rows:
    """Every token of every text once, in order; only the last row may be shorter.

    Each text begins and ends as the tokenizer has it. Where one token does both, one of them
    stands between two texts.
    """
    end = min(vocabulary.end, default=None)
    both = vocabulary.start == (end,)
    stream = [np.zeros(0, np.int32)]
    for text in texts:
        ids = [*vocabulary.start, *vocabulary.encode(text.encode())]
        stream.append(np.array(ids if both or end is None else [*ids, end], np.int32))
    if both and len(stream) > 1:
        stream.append(np.array(vocabulary.start, np.int32))
    packed = np.concatenate(stream)
    starts = np.array([*range(0, len(packed), length), len(packed)], np.int64)
    return Rows(packed, np.ones(len(packed), np.bool_), starts)
