"""Worlds small enough for brute force: random merges over two or three bytes, random models."""

from collections.abc import Callable
from functools import lru_cache
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray

from tokenizer_maps import Kind, Vocabulary
from tokenizer_maps.reference import Model

SEPARATOR = b"."
END = 0  # the id that ends and, read as a fixed id, begins a text


def vocabulary(
    seed: int, alphabet: bytes = b"ab", merges: int = 5, separator: bytes = b"", longest: int = 4
) -> Vocabulary:
    """Byte pairs merged at random; with a ``separator``, text is split before each one first."""
    rng = np.random.default_rng([seed, merges, len(alphabet)])
    tokens = [bytes([byte]) for byte in alphabet]
    ranks: dict[tuple[bytes, bytes], int] = {}
    for _ in range(100):
        left, right = (tokens[i] for i in rng.integers(0, len(tokens), 2))
        splits = bool(separator) and separator in right
        if len(ranks) == merges or len(left + right) > longest:
            continue
        if not splits and left + right not in tokens:
            ranks[left, right] = len(ranks)
            tokens.append(left + right)
    ids = {token: i for i, token in enumerate(tokens, END + 1)}
    encode = encoder(ranks, ids, separator)
    return Vocabulary(
        tokens=(b"", *tokens),
        kinds=(Kind.SPECIAL, *(Kind.BYTE for _ in tokens)),
        specials={"<end>": END},
        start=(),
        end=frozenset({END}),
        fingerprint=f"{seed:08x}{merges:08x}{len(alphabet):08x}{len(separator):08x}" * 2,
        chat_template=None,
        encoder=lru_cache(1 << 16)(encode),
    )


def encoder(
    ranks: dict[tuple[bytes, bytes], int], ids: dict[bytes, int], separator: bytes
) -> Callable[[bytes], tuple[int, ...]]:
    """Byte-pair encoding as in the textbook: the lowest rank first, leftmost of equals."""

    def merged(data: bytes) -> list[bytes]:
        parts = [data[i : i + 1] for i in range(len(data))]
        while True:
            found = [(ranks[two], i) for i, two in enumerate(pairwise(parts)) if two in ranks]
            if not found:
                return parts
            _, i = min(found)
            parts[i : i + 2] = [parts[i] + parts[i + 1]]

    def encode(data: bytes) -> tuple[int, ...]:
        cuts = [i for i in range(1, len(data)) if separator and data.startswith(separator, i)]
        pieces = [data[a:b] for a, b in zip([0, *cuts], [*cuts, len(data)], strict=True)]
        return tuple(ids[part] for piece in pieces for part in merged(piece))

    return encode


def model(seed: int, pair: Vocabulary, factor: float, end: float = 0.05) -> Model:
    """Dirichlet after each two last tokens; what is not canonical gets ``factor`` of it."""

    @lru_cache(1 << 12)
    def chances(last: tuple[int, ...]) -> NDArray[np.float64]:
        rng = np.random.default_rng([seed, *last])
        found = rng.dirichlet(np.full(len(pair.tokens), 0.5))
        for t, token in enumerate(pair.tokens):
            two = tuple(i for i in (*last[-1:], t) if i != END)
            if token and pair.encode(pair.decode(two)) != two:
                found[t] *= factor
        found[END] = 0.0
        found[END] = end * found.sum() / (1 - end) or 1.0
        return np.asarray(found / found.sum())

    return lambda path: chances(path[-2:])
