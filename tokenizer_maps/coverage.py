"""How much of one vocabulary another one covers, counted over their tokens."""

from bisect import bisect_left
from collections.abc import Sequence
from dataclasses import dataclass

from tokenizer_maps.vocabulary import Kind, Vocabulary

LONG = 16  # bytes; a buffer of that size would cut the tokens counted as long


@dataclass(frozen=True)
class Shape:
    """The tokens of a vocabulary's own model, without those added to it, by their bytes.

    ``duplicates`` spell what another one spells; ``p99``: 99 of 100 are no longer; ``long``: those
    above 16 bytes; ``invalid``: those that are no UTF-8 by themselves.
    """

    tokens: int
    added: int
    duplicates: int
    mean: float
    p99: int
    longest: int
    long: int
    invalid: int


@dataclass(frozen=True)
class Coverage:
    """What the pair's tokens are to the upstream's.

    ``exact``: upstream tokens that are a pair token, byte for byte; ``uncovered``: those that no
    single pair token even starts with. ``nested``: all are exact. ``identical``: the vocabularies
    are one, rules included.
    """

    upstream: Shape
    pair: Shape
    exact: int
    uncovered: int
    nested: bool
    identical: bool


def shape(vocabulary: Vocabulary) -> Shape:
    """Count a vocabulary's tokens."""
    tokens = _own(vocabulary)
    lengths = sorted(map(len, tokens)) or [0]
    return Shape(
        tokens=len(tokens),
        added=sum(kind is Kind.ADDED for kind in vocabulary.kinds),
        duplicates=len(tokens) - len(set(tokens)),
        mean=round(sum(lengths) / len(lengths), 4),
        p99=lengths[(99 * (len(lengths) - 1) + 50) // 100],
        longest=lengths[-1],
        long=sum(length > LONG for length in lengths),
        invalid=sum(not is_text(token) for token in tokens),
    )


def compare(upstream: Vocabulary, pair: Vocabulary, ranked: Sequence[bytes]) -> Coverage:
    """Compare two vocabularies; ``ranked`` holds the pair's text tokens, sorted."""
    tokens = _own(upstream)
    exact = sum(pair.id_of(token) is not None for token in tokens)
    return Coverage(
        upstream=shape(upstream),
        pair=shape(pair),
        exact=exact,
        uncovered=sum(not _reaches(ranked, token) for token in tokens),
        nested=exact == len(tokens),
        identical=upstream.fingerprint == pair.fingerprint,
    )


def _own(vocabulary: Vocabulary) -> list[bytes]:
    rows = zip(vocabulary.tokens, vocabulary.kinds, strict=True)
    return [token for token, kind in rows if kind is Kind.BYTE]


def _reaches(ranked: Sequence[bytes], token: bytes) -> bool:
    at = bisect_left(ranked, token)
    return at < len(ranked) and ranked[at].startswith(token)


def is_text(token: bytes) -> bool:
    """Whether a token spells whole characters."""
    try:
        token.decode()
    except UnicodeDecodeError:
        return False
    return True
