"""Byte-level BPE tokenizers of Hugging Face (tokenizer.json) as vocabularies."""

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

from tokenizers import Tokenizer

from tokenizer_maps.errors import VocabularyError
from tokenizer_maps.vocabulary import Kind, Vocabulary, fingerprint, utf8_runs

Json = dict[str, Any]


def _byte_table() -> dict[int, str]:
    """GPT-2's spelling of bytes: printable Latin-1 stands for itself, the rest from U+0100 on."""
    kept = [*range(0x21, 0x7F), *range(0xA1, 0xAD), *range(0xAE, 0x100)]
    moved = [byte for byte in range(256) if byte not in kept]
    return {b: chr(b) for b in kept} | {b: chr(256 + n) for n, b in enumerate(moved)}


_TABLE = _byte_table()
_BYTES = {char: byte for byte, char in _TABLE.items()}


def read_huggingface(path: Path) -> Vocabulary:
    """The tokenizer in the directory or tokenizer.json ``path``, with the files beside it.

    Raises VocabularyError where it is missing, unreadable or not byte-level BPE.
    """
    file = path / "tokenizer.json" if path.is_dir() else path
    if not file.is_file():
        raise VocabularyError(f"{file} does not exist: name a directory with a tokenizer.json")
    spec = _read(file)
    try:
        _refuse_unsupported(spec, file)
        tokens, kinds = _table(spec)
        tokenizer = Tokenizer.from_str(json.dumps(_bare(spec)))
    except VocabularyError:
        raise
    except Exception as error:  # tokenizers raises no narrower class
        raise VocabularyError(f"{file} is not a tokenizer.json: {error!r}") from error
    config = _read(file.with_name("tokenizer_config.json"))
    ids = spec["model"]["vocab"] | {t["content"]: t["id"] for t in spec["added_tokens"]}
    return Vocabulary(
        tokens=tokens,
        kinds=kinds,
        specials={t["content"]: t["id"] for t in spec["added_tokens"] if t["special"]},
        start=_start(tokenizer, config, ids),
        end=_end(file.parent, config, ids),
        fingerprint=fingerprint(tokens, kinds, _rules(spec)),
        chat_template=_chat_template(file.parent, config),
        encoder=_encoder(tokenizer, tokens, kinds),
    )


def _read(file: Path) -> Json:
    """A file's JSON object; empty where there is no file."""
    try:
        found = json.loads(file.read_text("utf-8")) if file.is_file() else {}
    except (OSError, ValueError) as error:
        raise VocabularyError(f"{file} cannot be read: {error}") from error
    if not isinstance(found, dict):
        raise VocabularyError(f"{file} holds no JSON object")
    return found


def _refuse_unsupported(spec: Json, file: Path) -> None:
    model, decoder = spec["model"], (spec.get("decoder") or {}).get("type")
    if model.get("type", "BPE") != "BPE" or decoder != "ByteLevel":
        raise VocabularyError(
            f"{file} is a {model.get('type')} tokenizer with a {decoder} decoder: not supported "
            "yet, only byte-level BPE is (the decoder ByteLevel)"
        )
    if model.get("continuing_subword_prefix") or model.get("end_of_word_suffix"):
        raise VocabularyError(f"{file} marks parts of words: not supported, use byte-level BPE")


def _table(spec: Json) -> tuple[tuple[bytes, ...], tuple[Kind, ...]]:
    """Bytes and kind by id; an added token hides the entry that shares its id."""
    found = {i: (_spelt(text), Kind.BYTE) for text, i in spec["model"]["vocab"].items()}
    for token in spec["added_tokens"]:
        literal = (token["content"].encode(), Kind.ADDED)
        found[token["id"]] = (b"", Kind.SPECIAL) if token["special"] else literal
    rows = [found.get(i, (b"", Kind.NONE)) for i in range(max(found) + 1)]
    return tuple(token for token, _ in rows), tuple(kind for _, kind in rows)


def _spelt(text: str) -> bytes:
    """The bytes of an entry, by the rule of the ByteLevel decoder."""
    if all(char in _BYTES for char in text):
        return bytes([_BYTES[char] for char in text])
    return text.encode()


def _bare(spec: Json) -> Json:
    """The tokenizer without anything that changes bytes or finds special tokens in text."""
    special = {t["content"] for t in spec["added_tokens"] if t["special"]}
    kept = [t for t in spec["added_tokens"] if not t["special"]]
    # An added token that strips would swallow the spaces around it.
    added = [token | {"lstrip": False, "rstrip": False} for token in kept]
    # Without the specials, added tokens would be numbered anew unless the model knows them.
    vocab = {text: i for text, i in spec["model"]["vocab"].items() if text not in special}
    vocab |= {t["content"]: t["id"] for t in added}
    return spec | {
        "normalizer": None,
        "truncation": None,
        "padding": None,
        "pre_tokenizer": _without_prefix_space(spec.get("pre_tokenizer")),
        "added_tokens": added,
        "model": spec["model"] | {"vocab": vocab, "dropout": None},
    }


def _without_prefix_space(node: Any) -> Any:
    if isinstance(node, list):
        return [_without_prefix_space(part) for part in node]
    if not isinstance(node, dict):
        return node
    off = {"add_prefix_space": False} if "add_prefix_space" in node else {}
    return {key: _without_prefix_space(part) for key, part in node.items()} | off


def _rules(spec: Json) -> Json:
    """What decides the tokens of a text besides the table; merges in one of their two spellings."""
    merges = spec["model"]["merges"]
    return {
        "pre_tokenizer": spec.get("pre_tokenizer"),
        "normalizer": spec.get("normalizer"),
        "ignore_merges": bool(spec["model"].get("ignore_merges")),
        "merges": [merge if isinstance(merge, str) else " ".join(merge) for merge in merges],
    }


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


def _start(tokenizer: Tokenizer, config: Json, ids: Json) -> tuple[int, ...]:
    """What the post-processor puts first, else the BOS that tokenizer_config.json asks for."""
    found = tokenizer.encode("a")
    start = found.ids[: found.special_tokens_mask.index(0)]
    wanted = config.get("bos_token") if config.get("add_bos_token") else None
    return tuple(start or _named(wanted, ids))


def _end(folder: Path, config: Json, ids: Json) -> frozenset[int]:
    """The eos_token of tokenizer_config.json and the eos_token_id of the model's own files."""
    end: set[Any] = set(_named(config.get("eos_token"), ids))
    for name in ("generation_config.json", "config.json"):
        found = _read(folder / name).get("eos_token_id")
        end.update(found if isinstance(found, list) else [found])
    return frozenset(end - {None})


def _named(token: Any, ids: Json) -> list[int]:
    """The id of a token given as a string, as an object or not at all."""
    content = token["content"] if isinstance(token, dict) else token
    return [ids[content]] if content in ids else []


def _chat_template(folder: Path, config: Json) -> str | None:
    file = folder / "chat_template.jinja"
    if file.is_file():
        return file.read_text("utf-8")
    found = config.get("chat_template")
    if isinstance(found, list):
        found = {entry["name"]: entry["template"] for entry in found}.get("default")
    return found
