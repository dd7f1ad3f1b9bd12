"""Lexicon: the upstream's vocabulary as a draw needs it."""

from collections.abc import Iterable, Iterator

import numpy as np

from adapter.candidates import Candidate, Position
from adapter.prefix import Prefix
from adapter.steering import Adapted, Flags, Words, token_words
from adapter.upstream.spelling import Spelling
from adapter.upstream.tokens import TokenNames
from adapter.upstream.unknown import Spellings
from tokenizer_maps.vocabulary import Vocabulary


class Lexicon:
    """Names hidden tokens, and gives every token what its noise is made of; by upstream id.

    `spelling`: the rules of an upstream that is sent text. `spellings`: the bytes of tokens that
    were met, where the vocabulary is unknown; hidden tokens then have no names.
    """

    def __init__(
        self,
        vocabulary: Vocabulary | None,
        spelling: Spelling | None = None,
        spellings: Spellings | None = None,
    ) -> None:
        self._names = None if vocabulary is None else TokenNames(vocabulary)
        self._spelling = spelling
        self._spellings = spellings
        # Now, not in a request: 128k tokens take half a second, in which nobody else is served.
        self._tables = None if vocabulary is None else self._read(len(vocabulary.kinds))

    def of_id(self, token: int, logprob: float) -> Candidate | None:
        """The token of that id as a candidate; None where the id has no name."""
        return None if self._names is None else self._names.of_id(token, logprob)

    def of_ids(self, tokens: Iterable[int]) -> tuple[Candidate, ...]:
        """The tokens of those ids as candidates to ask about; each of them has a name."""
        named = (self.of_id(token, 0.0) for token in tokens)
        return tuple(token for token in named if token is not None)

    @property
    def words(self) -> Words | None:
        """The word of every token; None where the vocabulary is unknown."""
        return self._tables[0] if self._tables else None

    @property
    def hideable(self) -> Flags | None:
        """The ids that are tokens at all; None where the vocabulary is unknown."""
        return self._tables[1] if self._tables else None

    def ids(self, position: Position) -> tuple[int, ...]:
        """The candidates as a bridge is asked about them, -1 for one without an id."""
        if self._spellings is not None:
            self._spellings.meet(position)
        return tuple(-1 if c.id is None else c.id for c in position.candidates)

    def barred(self, prefix: Prefix, adapted: Adapted) -> Flags | None:
        """Which entries may not come out, as the upstream cannot be sent them; None: none."""
        if self._spelling is None:
            return None
        return self._spelling.barred(prefix, adapted.position, adapted.ids)

    def flags(self, prefix: Prefix) -> Iterator[str]:
        """What is to be said of every step behind a prefix."""
        if self._spelling is not None and self._spelling.drifted(prefix):
            yield "retokenised"

    def _read(self, count: int) -> tuple[Words, Flags]:
        """The words and which ids are tokens, in one pass over the vocabulary."""
        named = [self.of_id(i, 0.0) for i in range(count)]
        words = token_words((c.token, c.special) if c else (b"", "") for c in named)
        return words, np.array([c is not None for c in named], np.bool_)
