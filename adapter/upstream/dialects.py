"""Which dialect is spoken with an endpoint."""

from typing import Literal

from adapter.upstream.completions import CompletionsUpstream
from adapter.upstream.llamacpp import LlamaCppUpstream
from adapter.upstream.records import Record
from adapter.upstream.transport import Endpoint
from adapter.upstream.upstream import Upstream
from tokenizer_maps.vocabulary import Vocabulary

Api = Literal["completions", "llama.cpp"]


def connect(
    endpoint: Endpoint, *, api: Api, vocabulary: Vocabulary, top_logprobs: int = 20
) -> Upstream:
    """The hosted model at an endpoint, asked for `top_logprobs` candidates a position.

    Nothing is sent yet. Raises SettingsError where the vocabulary cannot serve the dialect.
    """
    return _speaker(endpoint, api, vocabulary, top_logprobs)


def connect_known(
    endpoint: Endpoint, record: Record, *, vocabulary: Vocabulary, top_logprobs: int = 20
) -> Upstream:
    """The hosted model in the dialect of its record, asked for no more than that grants.

    Raises UpstreamMalformed with the reason where it cannot be steered, SettingsError as `connect`.
    """
    k = record.granted(top_logprobs)
    upstream = _speaker(endpoint, record.usable(), vocabulary, k)
    upstream.capabilities = record.narrow(upstream.capabilities)
    return upstream


def _speaker(
    endpoint: Endpoint, api: Api, vocabulary: Vocabulary, top_logprobs: int
) -> CompletionsUpstream | LlamaCppUpstream:
    k = min(top_logprobs, len(vocabulary.tokens))
    if api == "llama.cpp":
        return LlamaCppUpstream(endpoint, vocabulary, k)
    return CompletionsUpstream(endpoint, vocabulary, k)
