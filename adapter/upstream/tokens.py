"""What an upstream calls its tokens, turned into candidates by its vocabulary."""

import re
from collections import Counter
from collections.abc import Mapping
from functools import cached_property
from typing import Any

from adapter.candidates import END, Candidate
from adapter.errors import UpstreamMalformed
from adapter.upstream.answers import nats
from tokenizer_maps.vocabulary import Kind, Vocabulary

_ID_KEY = re.compile(r"token_id:(\d{1,9})")
_BYTES_KEY = "bytes:"
_ESCAPED = re.compile(r"""(?:[^\\\u0100-\U0010ffff]|\\(?:x[0-9a-fA-F]{2}|[\\'"abfnrtv]))*""")
REPLACED = "\ufffd"

WRONG_TOKENIZER = (
    "the configured tokenizer is not the upstream's: set `tokenizer` to the hosted model's own"
)

NOT_SPELT = (
    "the upstream's tokens do not add up to its text, so they cannot be told by what is printed of "
    "them: set `tokenizer` to the hosted model's own"
)


class TokenNames:
    """Candidates from ids and keys; None where nothing in the vocabulary goes by that name.

    `size` counts the tokens that have a name.
    """

    def __init__(self, vocabulary: Vocabulary) -> None:
        self._vocabulary = vocabulary
        self._special = {i: name for name, i in vocabulary.specials.items()}
        self._special |= dict.fromkeys(vocabulary.end, END)
        self.size: int | None = sum(kind is not Kind.NONE for kind in vocabulary.kinds)

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

        Servers print parts of characters as "" or U+FFFD, many tokens alike: such a key counts
        only where a single token of the vocabulary is printed that way.
        """
        by_id = _ID_KEY.fullmatch(key)
        if by_id is not None:
            return self.of_id(int(by_id[1]), logprob)
        if key in self._vocabulary.specials:
            return self.of_id(self._vocabulary.specials[key], logprob)
        if REPLACED in key:
            token = self._replaced.get(key)
            return None if token is None else self.of_id(token, logprob)
        return self._of_bytes(spelling(key), logprob)

    def of_entry(self, entry: Mapping[str, Any], pending: bytes = b"") -> Candidate | None:
        """The token behind an entry of chat's `top_logprobs`: `token`, `logprob` and `bytes`.

        An id decides, then a special's name, then the bytes: they may be those of the printed
        U+FFFD, of a special's name, or of the key itself. ``pending`` is the beginning of a
        character that the tokens before left over; some servers count it to the next one.
        """
        key, logprob = entry.get("token"), nats(entry.get("logprob"))
        if type(entry.get("id")) is int:
            return self.of_id(entry["id"], logprob)
        if not isinstance(key, str):
            return None
        spelt = given(entry.get("bytes"))
        if not spelt or _ID_KEY.fullmatch(key) or key in self._vocabulary.specials:
            return self.of_key(key, logprob)
        if REPLACED in key and REPLACED.encode() in spelt:  # they spell what is printed
            return self.of_key(key, logprob)
        special = self._vocabulary.specials.get(spelt.decode("utf-8", "replace"))
        if special is not None:
            return self.of_id(special, logprob)
        return self._of_bytes(spelt.removeprefix(pending), logprob)

    def _of_bytes(self, spelt: bytes, logprob: float) -> Candidate | None:
        """The token the model would use where several are spelt alike."""
        canonical = self._vocabulary.encode(spelt)
        alone = canonical[0] if len(canonical) == 1 else None
        if alone is None or self._vocabulary.tokens[alone] != spelt:
            alone = self._vocabulary.id_of(spelt)
        return None if alone is None else self.of_id(alone, logprob)

    @cached_property
    def _replaced(self) -> dict[str, int]:
        """Tokens by what is printed of them, where that holds U+FFFD and is printed of no other."""
        tokens = enumerate(self._vocabulary.tokens)
        printed = {i: token.decode("utf-8", "replace") for i, token in tokens}
        count = Counter(printed.values())
        return {text: i for i, text in printed.items() if REPLACED in text and count[text] == 1}

    def check(self, candidate: Candidate, spelt: bytes) -> None:
        """Raises UpstreamMalformed where the upstream spells a token of text differently."""
        if spelt and candidate.special is None and spelt != candidate.token:
            raise UpstreamMalformed(WRONG_TOKENIZER)


def is_id(key: str) -> bool:
    """Whether a key names its token by id, so that no two tokens can share it."""
    return _ID_KEY.fullmatch(key) is not None


def spelling(key: str) -> bytes:
    """The bytes of a text key; OpenAI writes those of parts of characters as `bytes:\\xe2`."""
    if not key.startswith(_BYTES_KEY):
        return key.encode("utf-8", "surrogatepass")
    escaped = key.removeprefix(_BYTES_KEY)
    if not _ESCAPED.fullmatch(escaped):
        return b""
    return escaped.encode("latin-1").decode("unicode_escape").encode("latin-1")


def given(spelt: Any) -> bytes:
    """The `bytes` of an entry; b"" where they are null, left out or none."""
    try:
        return bytes(spelt) if isinstance(spelt, list) else b""
    except (TypeError, ValueError):
        return b""
