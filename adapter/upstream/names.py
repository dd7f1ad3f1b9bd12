"""Names: from what an upstream calls a token to the candidate, whatever is known of its tokens."""

from collections.abc import Mapping
from typing import Any, Protocol

from adapter.candidates import Candidate
from adapter.settings import UNKNOWN
from adapter.upstream.tokens import TokenNames
from adapter.upstream.transport import Endpoint
from adapter.upstream.unknown import SpeltNames
from tokenizer_maps.vocabulary import Vocabulary


class Names(Protocol):
    """Candidates by id, by key or by entry; None where nothing goes by that name."""

    @property
    def size(self) -> int | None:
        """How many tokens there are; None where nobody knows."""
        ...

    def of_id(self, token: int, logprob: float) -> Candidate | None:
        """The token of that id."""
        ...

    def of_key(self, key: str, logprob: float) -> Candidate | None:
        """The token behind a key of the classic shape."""
        ...

    def of_entry(self, entry: Mapping[str, Any], pending: bytes = b"") -> Candidate | None:
        """The token behind an entry of chat's `top_logprobs`."""
        ...

    def check(self, candidate: Candidate, spelt: bytes) -> None:
        """Raises UpstreamMalformed where the upstream spells a token of text differently."""
        ...


def names_of(vocabulary: Vocabulary | None) -> Names:
    """By the vocabulary, or by the tokens' bytes where it is not known."""
    return SpeltNames() if vocabulary is None else TokenNames(vocabulary)


def model_of(endpoint: Endpoint, vocabulary: Vocabulary | None) -> tuple[str, str, str]:
    """Which model it is, for an Upstream's identity: address, name and tokenizer."""
    words = UNKNOWN if vocabulary is None else vocabulary.fingerprint
    return endpoint.base_url, endpoint.model, words
