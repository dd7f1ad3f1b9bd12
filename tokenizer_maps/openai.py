"""tiktoken encodings as vocabularies."""

import regex  # type: ignore[import-untyped]
import tiktoken

from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.vocabulary import Kind, Vocabulary, fingerprint, utf8_runs

END = "<|endoftext|>"


def read_tiktoken(name: str) -> Vocabulary:
    """The encoding tiktoken knows as ``name``; may download it once, as tiktoken does.

    Raises VocabularyError for an unknown name, or where its file is neither cached nor reachable.
    """
    try:
        return from_encoding(tiktoken.get_encoding(name))
    except (ValueError, OSError, ImportError) as error:
        raise VocabularyError(
            f"tiktoken:{name} cannot be read ({error}); without a network set TIKTOKEN_CACHE_DIR "
            f"to a folder that holds its file; known names: {tiktoken.list_encoding_names()}"
        ) from error


def from_encoding(encoding: tiktoken.Encoding) -> Vocabulary:
    """An encoding as a vocabulary.

    A run of invalid bytes is merged as one piece together with the pretoken before it: so a
    character cut in two gets the tokens a model has usually seen there. (tiktoken's own
    ``_encode_bytes`` also takes in the white space before that pretoken, and so moves its tokens.)
    """
    size = encoding.max_token_value + 1
    tokens, kinds = [b""] * size, [Kind.NONE] * size
    for token, i in encoding._mergeable_ranks.items():
        tokens[i], kinds[i] = token, Kind.BYTE
    specials = dict(encoding._special_tokens)
    for i in specials.values():
        kinds[i] = Kind.SPECIAL

    pretoken = regex.compile(encoding._pat_str)

    def encode(data: bytes) -> list[int]:
        ids: list[int] = []
        for text, bad in utf8_runs(data):
            if not bad:
                ids += encoding.encode_ordinary(text)
                continue
            *pieces, last = [match[0].encode() for match in pretoken.finditer(text)] or [b""]
            for piece in (*pieces, last + bad):
                ids += encoding._encode_single_piece(piece)
        return ids

    return Vocabulary(
        tokens=tuple(tokens),
        kinds=tuple(kinds),
        specials=specials,
        start=(),
        end=frozenset({specials[END]} if END in specials else ()),
        fingerprint=fingerprint(tokens, kinds, {"tiktoken": encoding._pat_str}),
        chat_template=None,
        encoder=encode,
    )
