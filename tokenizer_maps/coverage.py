"""How much of one vocabulary another one covers, counted over their tokens."""

import unicodedata
from bisect import bisect_left
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

from tokenizer_maps.vocabulary import Kind, Vocabulary

LONG = 16  # bytes; a buffer of that size would cut the tokens counted as long
FEW = 200  # tokens of a script, from which on it is worth a word


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


def torn(
    upstream: Vocabulary, pair: Vocabulary, coarse: Mapping[int, int]
) -> dict[str, tuple[int, int]]:
    """By script, where it is most of them: (tokens seen as a piece of a character, all tokens).

    ``coarse``: by upstream token that no single pair token reaches, the one it is scored by. Where
    that is a piece of a character, so are the pair's memory and most of what tells tokens apart.
    """
    every, pieces = Counter[str](), Counter[str]()
    for i, (token, kind) in enumerate(zip(upstream.tokens, upstream.kinds, strict=True)):
        if kind is Kind.BYTE and not token.isascii():
            script = _script(token)
            every[script] += 1
            pieces[script] += i in coarse and not is_text(pair.tokens[coarse[i]])
    found = every.most_common()
    return {s: (pieces[s], n) for s, n in found if s and n >= FEW and 2 * pieces[s] > n}


def _script(token: bytes) -> str:
    """The first word of the Unicode name of the first letter beyond ASCII: CJK, HANGUL."""
    letters = (char for char in token.decode("utf-8", "ignore") if char.isalpha())
    return next((unicodedata.name(c, "").partition(" ")[0] for c in letters if c > "\x7f"), "")


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
