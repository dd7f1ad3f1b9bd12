"""The upstream's tokenizer over HTTP, at the server's root and in the shape vLLM has."""

from typing import TYPE_CHECKING

from pydantic import Field

from adapter.errors import BadRequest
from adapter.service.render import Json
from adapter.service.wire import Wire, read_wire

if TYPE_CHECKING:  # the engine brings torch along, and the wire does not need it
    from adapter.adapter import Adapter
    from tokenizer_maps.vocabulary import Vocabulary


class Named(Wire):
    model: str | None = None


class ToTokenize(Named):
    prompt: str
    add_special_tokens: bool = True


class ToDetokenize(Named):
    tokens: list[int] = Field(max_length=2**17)


class Tokenizer:
    """Answers about the tokenizers of an adapter's models; a lone model needs no name."""

    def __init__(self, adapter: "Adapter") -> None:
        self._adapter = adapter

    def tokenize(self, raw: bytes) -> Json:
        """A text's ids; `add_special_tokens` puts in front what the tokenizer does."""
        asked = read_wire(raw, ToTokenize)
        vocabulary = self._vocabulary(asked.model)
        start = vocabulary.start if asked.add_special_tokens else ()
        tokens = [*start, *vocabulary.encode(asked.prompt.encode())]
        return {"count": len(tokens), "tokens": tokens}

    def detokenize(self, raw: bytes) -> Json:
        """The text that ids spell, special tokens by their names."""
        asked = read_wire(raw, ToDetokenize)
        vocabulary = self._vocabulary(asked.model)
        names = {i: name for name, i in vocabulary.specials.items()}
        if not all(0 <= i < len(vocabulary.kinds) for i in asked.tokens):
            raise BadRequest("tokens: an id is no token of this model", param="tokens")
        spelt = [names[i].encode() if i in names else vocabulary.tokens[i] for i in asked.tokens]
        return {"prompt": b"".join(spelt).decode("utf-8", "replace")}

    def info(self, model: str | None) -> Json:
        """The special tokens and the chat template, as a client with a tokenizer needs them."""
        vocabulary = self._vocabulary(model)
        names = {i: name for name, i in vocabulary.specials.items()}
        end = next((names[i] for i in sorted(vocabulary.end) if i in names), None)
        start = next((names[i] for i in vocabulary.start if i in names), None)
        return {
            "bos_token": start,
            "eos_token": end,
            "pad_token": end,
            "chat_template": vocabulary.chat_template,
        }

    def _vocabulary(self, model: str | None) -> "Vocabulary":
        if model is None and len(self._adapter.models) > 1:
            names = ", ".join(sorted(self._adapter.models))
            raise BadRequest(f"model is required: there are {names}", param="model")
        return self._adapter.vocabulary(model or self._adapter.models[0])
