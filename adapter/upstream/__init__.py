"""Hosted models behind their APIs."""

from typing import Literal

from adapter.upstream.capabilities import Capabilities
from adapter.upstream.completions import CompletionsUpstream
from adapter.upstream.llamacpp import LlamaCppUpstream
from adapter.upstream.transport import Endpoint
from adapter.upstream.upstream import Upstream
from tokenizer_maps.vocabulary import Vocabulary

__all__ = ["Api", "Capabilities", "Endpoint", "Upstream", "connect"]

Api = Literal["completions", "llama.cpp"]


def connect(
    endpoint: Endpoint, *, api: Api, vocabulary: Vocabulary, top_logprobs: int = 20
) -> Upstream:
    """The hosted model at an endpoint, asked for `top_logprobs` candidates a position.

    Nothing is sent yet. Raises SettingsError where the vocabulary cannot serve the dialect.
    """
    k = min(top_logprobs, len(vocabulary.tokens))
    if api == "llama.cpp":
        return LlamaCppUpstream(endpoint, vocabulary, k)
    return CompletionsUpstream(endpoint, vocabulary, k)
