"""What an upstream calls its tokens, turned into candidates by its vocabulary."""

import re

from adapter.candidates import END, Candidate
from adapter.errors import UpstreamMalformed
from tokenizer_maps.vocabulary import Kind, Vocabulary

_ID_KEY = re.compile(r"token_id:(\d{1,9})")
_BYTES_KEY = "bytes:"

WRONG_TOKENIZER = (
    "the configured tokenizer is not the upstream's: set `tokenizer` to the hosted model's own"
)


class TokenNames:
    """Candidates from ids and keys; None where nothing in the vocabulary goes by that name.

    `size` counts the tokens that have a name.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special = {i: name for name, i in vocabulary.specials.items()}
        self._special |= dict.fromkeys(vocabulary.end, END)
        self.size = sum(kind is not Kind.NONE for kind in vocabulary.kinds)

    def of_id(self, token: int, logprob: float) -> Candidate | None:
        """The token of that id; models have rows past their vocabulary, and those have no name."""
        special = self._special.get(token)
        if special is not None:
            return Candidate(b"", logprob, token, special)
        if not 0 <= token < len(self._vocabulary.tokens) or not self._vocabulary.spells(token):
            return None
        return Candidate(self._vocabulary.tokens[token], logprob, token)

    def of_key(self, key: str, logprob: float) -> Candidate | None:
        """The token behind a key: `token_id:345`, a special's name, `bytes:\\xe2\\x80`, or text.

        Servers print parts of characters as "" or U+FFFD, many tokens alike: such keys only
        count where the vocabulary really has that token.
        """
        by_id = _ID_KEY.fullmatch(key)
        if by_id is not None:
            return self.of_id(int(by_id[1]), logprob)
        if key in self._vocabulary.specials:
            return self.of_id(self._vocabulary.specials[key], logprob)
        spelt = _spelling(key)
        token = self._vocabulary.id_of(spelt) if spelt and "\ufffd" not in key else None
        return None if token is None else self.of_id(token, logprob)

    def check(self, candidate: Candidate, spelt: bytes) -> None:
        """Raises UpstreamMalformed where the upstream spells a token of text differently."""
        if spelt and candidate.special is None and spelt != candidate.token:
            raise UpstreamMalformed(WRONG_TOKENIZER)


def _spelling(key: str) -> bytes:
    """The bytes of a text key; OpenAI writes those of parts of characters as `bytes:\\xe2`."""
    if not key.startswith(_BYTES_KEY):
        return key.encode("utf-8", "surrogatepass")
    escaped = key.removeprefix(_BYTES_KEY).encode("latin-1", "backslashreplace")
    try:
        return escaped.decode("unicode_escape").encode("latin-1")
    except UnicodeError:
        return b""
