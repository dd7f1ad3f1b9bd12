"""The errors of this package.

TokenizerMapError
├── VocabularyError   a tokenizer that cannot be read or used
├── EncodingError     a text on which a tokenizer breaks down
└── MapError          a map file that cannot be trusted or written
"""


class TokenizerMapError(Exception):
    """Anything this package refuses to do."""


class VocabularyError(TokenizerMapError):
    """A tokenizer is missing, unreadable or of a kind not supported; says which and what to do."""


class EncodingError(TokenizerMapError):
    """A tokenizer broke down on a text."""


class MapError(TokenizerMapError):
    """A map file is corrupt, of another version or pair of vocabularies, or cannot be written."""
