"""Hugging Face tokenizers (tokenizer.json) as vocabularies: byte-level and sentencepiece style."""

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenizer_maps.beside import Json, chat_template, end_ids, named, read_json
from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.sentencepiece import SPACE, Piece, PieceType, bytewise, encoder_of
from tokenizer_maps.vocabulary import Kind, Vocabulary, fingerprint, utf8_runs


def _byte_table() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + n) for n, b in enumerate(moved)}


_TABLE = _byte_table()
_BYTES = {char: byte for byte, char in _TABLE.items()}
_BYTE_PIECE = re.compile("<0x([0-9A-F]{2})>")


def read_huggingface(path: Path) -> Vocabulary:
    """The tokenizer in the directory or tokenizer.json ``path``, with the files beside it.

    Raises VocabularyError where it is missing, unreadable or of another kind.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise VocabularyError(f"{file} does not exist: name a directory with a tokenizer.json")
    spec = read_json(file)
    config = read_json(file.with_name("tokenizer_config.json"))
    return from_spec(
        spec,
        str(file),
        config=config,
        end=lambda ids: end_ids(file.parent, named(config.get("eos_token"), ids)),
        chat_template=chat_template(file.parent, config),
    )


def from_spec(
    spec: Json,
    where: str,
    *,
    config: Json,
    end: Callable[[Json], frozenset[int]],
    chat_template: str | None,
) -> Vocabulary:
    """What a tokenizer.json says, as a vocabulary; ``end`` makes the ends from the ids by name.

    Raises VocabularyError, naming ``where`` it came from.
    """
    try:
        bytelevel = _is_bytelevel(spec, where)
        tokens, kinds = _table(spec, _spelt if bytelevel else _spelt_by_pieces)
        tokenizer = Tokenizer.from_str(json.dumps(_bare(spec, " " if bytelevel else SPACE)))
    except VocabularyError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise VocabularyError(f"{where} is not a tokenizer.json: {error!r}") from error
    ids = _vocab(spec) | {t["content"]: t["id"] for t in spec["added_tokens"]}
    make = _encoder if bytelevel else _pieces_encoder
    unigram = isinstance(spec["model"]["vocab"], list)
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        specials={t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]},
        start=_start(tokenizer, config, ids),
        end=end(ids),
        fingerprint=fingerprint(tokens, kinds, _rules(spec)),
        chat_template=chat_template,
        encoder=_unigram(spec) if unigram else make(tokenizer, tokens, kinds),
    )


def _is_bytelevel(spec: Json, where: str) -> bool:
    """Byte-level or sentencepiece style; by the decoder, the vocabulary may look like either."""
    model, decoder = spec["model"], spec.get("decoder") or {}
    steps = [decoder, *(decoder.get("decoders") or ())]
    kind, names = model.get("type", "BPE"), [step.get("type") for step in steps]
    if kind not in ("BPE", "Unigram"):
        raise VocabularyError(_refusal(where, kind, names))
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise VocabularyError(f"{where} marks parts of words: not supported, use byte-level BPE")
    if kind == "BPE" and "ByteLevel" in names:
        return True
    if any(_writes_spaces(step) for step in steps):
        return False
    raise VocabularyError(_refusal(where, kind, names))


def _writes_spaces(step: Json) -> bool:
    """Whether a decoder's step turns ▁ into a space."""
    if step.get("type") == "Metaspace":
        return bool(step.get("replacement", SPACE) == SPACE)
    replaces: bool = step.get("type") == "Replace" and step.get("content") == " "
    return replaces and step.get("pattern") == {"String": SPACE}


def _refusal(where: str, kind: str, decoders: list[str | None]) -> str:
    named = " and ".join(str(name) for name in decoders)
    return (
        f"{where} is a {kind} tokenizer with a {named} decoder: not supported, "
        "only byte-level BPE and tokenizers in the style of sentencepiece are"
    )


def _vocab(spec: Json) -> dict[str, int]:
    """Ids by entry; a Unigram model lists its entries with scores, in order."""
    vocab = spec["model"]["vocab"]
    return vocab if isinstance(vocab, dict) else {text: i for i, (text, _) in enumerate(vocab)}


def _table(spec: Json, spelt: Callable[[str], bytes]) -> tuple[tuple[bytes, ...], tuple[Kind, ...]]:
    """Bytes and kind by id; an added token hides the entry that shares its id."""
    found = {i: (spelt(text), Kind.BYTE) for text, i in _vocab(spec).items()}
    unknown = _unknown(spec)
    if unknown is not None:
        found[unknown] = (b"", Kind.SPECIAL)
    for token in spec["added_tokens"]:
        literal = (token["content"].encode(), Kind.ADDED)
        found[token["id"]] = (b"", Kind.SPECIAL) if token["special"] else literal
    rows = [found.get(i, (b"", Kind.NONE)) for i in range(max(found) + 1)]
    return tuple(token for token, _ in rows), tuple(kind for _, kind in rows)


def _unknown(spec: Json) -> int | None:
    """The id that stands for characters without a token."""
    model = spec["model"]
    found: int | None = model.get("unk_id", _vocab(spec).get(model.get("unk_token") or ""))
    return found


def _spelt(text: str) -> bytes:
    """The bytes of an entry, by the rule of the ByteLevel decoder."""
    if all(char in _BYTES for char in text):
        return bytes([_BYTES[char] for char in text])
    return text.encode()


def _spelt_by_pieces(text: str) -> bytes:
    """The bytes of an entry, by the rules of the decoders Replace (or Metaspace), ByteFallback."""
    found = _BYTE_PIECE.fullmatch(text)
    return bytes.fromhex(found[1]) if found else text.replace(SPACE, " ").encode()


def _bare(spec: Json, space: str) -> Json:
    """The tokenizer without anything that changes bytes or finds special tokens in text.

    It is given texts with ``space`` for their spaces.
    """
    special = {t["content"] for t in spec["added_tokens"] if t["special"]}
    special -= {spec["model"].get("unk_token")}
    kept = [t for t in spec["added_tokens"] if not t["special"]]
    # An added token that strips would swallow the spaces around it.
    added = [
        token | {"content": token["content"].replace(" ", space), "lstrip": False, "rstrip": False}
        for token in kept
    ]
    model = spec["model"]
    if isinstance(model["vocab"], dict):
        # Without the specials, added tokens would be numbered anew unless the model knows them.
        vocab = {text: i for text, i in model["vocab"].items() if text not in special}
        model = model | {"vocab": vocab | {t["content"]: t["id"] for t in added}, "dropout": None}
    return spec | {
        "normalizer": None,
        "truncation": None,
        "padding": None,
        "pre_tokenizer": _without_prefix_space(spec.get("pre_tokenizer")),
        "added_tokens": added,
        "model": model,
    }


def _without_prefix_space(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_prefix_space(part) for part in node]
    if not isinstance(node, dict):
        return node
    off: Json = {"add_prefix_space": False} if "add_prefix_space" in node else {}
    if node.get("type") == "Metaspace":
        off |= {"prepend_scheme": "never", "add_prefix_space": False}
    return {key: _without_prefix_space(part) for key, part in node.items()} | off


def _rules(spec: Json) -> Json:
    """What decides the tokens of a text besides the table; merges in one of their two spellings."""
    model = spec["model"]
    merges = model.get("merges", [])
    rules = {
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "normalizer": spec.get("normalizer"),
        "ignore_merges": bool(model.get("ignore_merges")),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }
    scored = isinstance(model["vocab"], list)
    return rules | ({"scores": [score for _, score in model["vocab"]]} if scored else {})


def _encoder(
    tokenizer: Tokenizer, tokens: tuple[bytes, ...], kinds: tuple[Kind, ...]
) -> Callable[[bytes], list[int]]:
    """Encode text as the tokenizer does, and invalid bytes through its merges.

    A run of invalid bytes is merged as one piece together with the pretoken before it: so a
    character cut in two gets the tokens a model has usually seen there.
    """
    model = tokenizer.model

    def merge(data: bytes) -> list[int]:
        return [token.id for token in model.tokenize("".join([_TABLE[b] for b in data]))]

    def encode(data: bytes) -> list[int]:
        ids: list[int] = []
        for text, bad in utf8_runs(data):
            found = tokenizer.encode(text, add_special_tokens=False)
            cut = len(found.ids)
            if bad and found.ids and kinds[found.ids[-1]] == Kind.BYTE:
                cut = found.word_ids.index(found.word_ids[-1])
            ids += found.ids[:cut]
            ids += merge(b"".join([tokens[i] for i in found.ids[cut:]]) + bad) if bad else []
        return ids

    return encode


def _pieces_encoder(
    tokenizer: Tokenizer, tokens: tuple[bytes, ...], kinds: tuple[Kind, ...]
) -> Callable[[bytes], list[int]]:
    """Encode text with ▁ for its spaces; a byte is spelt by <0xNN> or else by its own entry."""
    spelt: list[list[int]] = [[] for _ in range(256)]
    for i in reversed(range(len(tokens))):
        if kinds[i] == Kind.BYTE and len(tokens[i]) == 1:
            spelt[tokens[i][0]] = [i]
    unknown = {i for i in range(len(tokens)) if kinds[i] > Kind.ADDED}

    def encode(text: str) -> list[int]:
        found = tokenizer.encode(text, add_special_tokens=False).ids
        return [i for i in found if i not in unknown]

    return bytewise(encode, spelt)


def _unigram(spec: Json) -> Callable[[bytes], list[int]]:
    """Encode with our own Viterbi, which never finds a special token or <0xNN> in text."""
    model = spec["model"]
    rows = [Piece(text, score, PieceType.NORMAL) for text, score in model["vocab"]]
    for i, (text, score, _) in enumerate(rows):
        if model.get("byte_fallback") and _BYTE_PIECE.fullmatch(text):
            rows[i] = Piece(text, score, PieceType.BYTE)
    if model.get("unk_id") is not None:
        rows[model["unk_id"]] = Piece("", 0.0, PieceType.UNKNOWN)
    for token in spec["added_tokens"]:
        gap = token["id"] + 1 - len(rows)
        rows += [Piece("", 0.0, PieceType.UNUSED)] * gap
        kind = PieceType.CONTROL if token["special"] else PieceType.USER_DEFINED
        rows[token["id"]] = Piece(token["content"].replace(" ", SPACE), 0.0, kind)
    return encoder_of(rows, unigram=True)


def _start(tokenizer: Tokenizer, config: Json, ids: Json) -> tuple[int, ...]:
    """What the post-processor puts first, else the BOS that tokenizer_config.json asks for."""
    found = tokenizer.encode("a")
    start = found.ids[: found.special_tokens_mask.index(0)]
    wanted = config.get("bos_token") if config.get("add_bos_token") else None
    return tuple(start or named(wanted, ids))
