"""Which dialect is spoken with an endpoint."""

from dataclasses import replace
from typing import Literal

from adapter.upstream.capabilities import CHAT
from adapter.upstream.chat import FORMS, ChatSpeaker
from adapter.upstream.completions import CompletionsUpstream
from adapter.upstream.llamacpp import LlamaCppUpstream
from adapter.upstream.once import OnceUpstream
from adapter.upstream.records import Record
from adapter.upstream.speaker import PromptSpeaker
from adapter.upstream.texts import TextUpstream
from adapter.upstream.transport import Endpoint
from adapter.upstream.unproven import UnprovenSpeaker
from adapter.upstream.upstream import Upstream
from tokenizer_maps.vocabulary import Vocabulary

Api = Literal["completions", "llama.cpp"]

Form = Literal["ids", "text"]
"""How a prefix is sent. An unknown vocabulary has no ids to send."""


def connect(
    endpoint: Endpoint,
    *,
    api: Api,
    vocabulary: Vocabulary | None,
    top_logprobs: int = 20,
    form: Form = "ids",
) -> Upstream:
    """The hosted model at an endpoint, asked for `top_logprobs` candidates a position.

    Nothing is sent yet. Raises SettingsError where the vocabulary cannot serve the dialect.
    """
    return _connected(endpoint, api, vocabulary, top_logprobs, form)


def connect_known(
    endpoint: Endpoint,
    record: Record,
    *,
    vocabulary: Vocabulary | None,
    top_logprobs: int = 20,
    form: Form | None = None,
) -> Upstream:
    """The hosted model in the dialect of its record, asked for no more than that grants.

    Prefixes go as ids where the record says so; `form` decides otherwise. Raises UpstreamMalformed
    with the reason where it cannot be steered, SettingsError as `connect`.
    """
    k, api = record.granted(top_logprobs), record.usable()
    if api == "chat":
        return connect_chat(endpoint, record, vocabulary, k)
    if form is None:
        form = "text" if vocabulary is None or record.value("continues") == "text" else "ids"
    upstream = _connected(endpoint, api, vocabulary, k, form)
    upstream.capabilities = replace(record.narrow(upstream.capabilities), continues=form)
    return upstream


def connect_chat(
    endpoint: Endpoint, record: Record, vocabulary: Vocabulary | None, top_logprobs: int
) -> Upstream:
    """The hosted model behind its chat API; it goes on from an answer only where that is known."""
    k = top_logprobs if vocabulary is None else min(top_logprobs, len(vocabulary.tokens))
    knows = record.narrow(CHAT)
    if knows.continues != "text" or knows.continues_by not in FORMS:
        knows = replace(knows, continues="none", continues_by=None)
    speaker = ChatSpeaker(endpoint, vocabulary, k, knows)
    if knows.continues == "none":
        return OnceUpstream(speaker)
    proven = record.findings["continues_by"].how == "measured"
    asked = speaker if proven else UnprovenSpeaker(speaker, vocabulary)
    return TextUpstream(asked, vocabulary)


def _connected(
    endpoint: Endpoint, api: Api, vocabulary: Vocabulary | None, top_logprobs: int, form: Form
) -> CompletionsUpstream | LlamaCppUpstream | TextUpstream:
    k = top_logprobs if vocabulary is None else min(top_logprobs, len(vocabulary.tokens))
    dialect = LlamaCppUpstream if api == "llama.cpp" else CompletionsUpstream
    asked = dialect(endpoint, vocabulary, k)
    return asked if form == "ids" else TextUpstream(PromptSpeaker(asked), vocabulary)
