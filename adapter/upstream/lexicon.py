"""Lexicon: the upstream's vocabulary as a draw needs it."""

from collections.abc import Iterable
from functools import cached_property

import numpy as np

from adapter.candidates import Candidate
from adapter.steering import Flags, Words, token_words
from adapter.upstream.tokens import TokenNames
from tokenizer_maps.vocabulary import Vocabulary


class Lexicon:
    """Names hidden tokens, and gives every token what its noise is made of; by upstream id."""

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._names = TokenNames(vocabulary)
        self._count = len(vocabulary.kinds)

    def of_id(self, token: int, logprob: float) -> Candidate | None:
        """The token of that id as a candidate; None where the id has no name."""
        return self._names.of_id(token, logprob)

    def of_ids(self, tokens: Iterable[int]) -> tuple[Candidate, ...]:
        """The tokens of those ids as candidates to ask about; each of them has a name."""
        named = (self._names.of_id(token, 0.0) for token in tokens)
        return tuple(token for token in named if token is not None)

    @property
    def words(self) -> Words:
        """The word of every token."""
        return self._tables[0]

    @property
    def hideable(self) -> Flags:
        """The ids that are tokens at all."""
        return self._tables[1]

    @cached_property
    def _tables(self) -> tuple[Words, Flags]:
        """Both in one pass over the vocabulary, which takes a while."""
        named = [self._names.of_id(i, 0.0) for i in range(self._count)]
        words = token_words((c.token, c.special) if c else (b"", "") for c in named)
        return words, np.array([c is not None for c in named], np.bool_)
