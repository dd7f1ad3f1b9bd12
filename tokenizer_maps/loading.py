"""Reading a vocabulary by its name; one reader a kind of file."""

from pathlib import Path

from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.vocabulary import Vocabulary

SAMPLE = "It's 12345 tests,\n\n   naïve 漢字 🙂\r\n\t!".encode() + bytes(range(256))
KINDS = ("hf", "tiktoken", "sentencepiece", "gguf")  # of tokenizers, and their prefixes


def load_vocabulary(spec: str) -> Vocabulary:
    """Read ``hf:DIRECTORY``, ``tiktoken:NAME``, ``sentencepiece:FILE`` or ``gguf:FILE``.

    ``hf:`` takes a tokenizer.json as well, ``sentencepiece:`` a directory with a tokenizer.model.
    Raises VocabularyError where the tokenizer is missing, unreadable or not supported.
    """
    kind, _, where = spec.partition(":")
    if kind not in KINDS or not where:
        raise VocabularyError(
            f"unknown tokenizer {spec!r}: write hf:DIRECTORY, hf:FILE (a tokenizer.json), "
            "tiktoken:NAME, sentencepiece:FILE or gguf:FILE"
        )
    return _checked(_read(kind, where), spec)


def _read(kind: str, where: str) -> Vocabulary:
    """Each reader is imported when used: they need packages of their own."""
    path = Path(where).expanduser()
    if kind == "hf":
        from tokenizer_maps.huggingface import read_huggingface

        return read_huggingface(path)
    if kind == "sentencepiece":
        from tokenizer_maps.sentencepiece import read_sentencepiece

        return read_sentencepiece(path)
    if kind == "gguf":
        from tokenizer_maps.ggml import read_gguf

        return read_gguf(path)
    from tokenizer_maps.openai import read_tiktoken

    return read_tiktoken(where)


def _checked(vocabulary: Vocabulary, spec: str) -> Vocabulary:
    sample = bytes([byte for byte in SAMPLE if vocabulary.id_of(bytes([byte])) is not None])
    if vocabulary.decode(vocabulary.encode(sample)) != sample:
        raise VocabularyError(
            f"{spec} does not give back the bytes it encodes: its pre-tokenizer drops or changes "
            "text"
        )
    return vocabulary
