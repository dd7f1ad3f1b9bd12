"""Small tokenizers trained on the spot, models made of hashes, and a pair that evaluates plans."""

import hashlib
import json
import math
from collections.abc import Sequence
from functools import lru_cache
from pathlib import Path

import numpy as np
import tiktoken
from numpy.typing import NDArray
from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, trainers
from tokenizers.pre_tokenizers import ByteLevel

from tokenizer_maps import (
    Bridge,
    Context,
    Kind,
    Masses,
    Offsets,
    Plan,
    Reading,
    Sets,
    Tree,
    Vocabulary,
)
from tokenizer_maps.reference import Model

PROSE = """The quick brown fox jumps over the lazy dog; they were there, then, because their
weather was whether or not. It's 12345 and 67890, 1999 or 2024.\r\n\r\n
In 1991 there were 3 others: "quoted", (bracketed), hyphen-ated; we're, they've, I'd, he'll.
"""
CODE = '''def mean(values: list[float]) -> float:
    """The mean."""
    total = 0.0
    for value in values:
        if value is not None and value >= 0:
            total += value  # 100% of it
    return total / len(values)


class Thing(object):
\tdef __init__(self, x=1, y=22, z=333):
\t\tself.x, self.y = x, y
'''
WORLD = "naïve café — 漢字とかな、中文。 한국어 Ελλάδα привет 🙂👩‍👩‍👧 “quotes” …\n"
NUMBERS = "10\n100\n1000\n12\n123\n1234\n19\n1999\n20\n2024\n" * 5
RULES = ("-" * 100 + "\n") * 3
CORPUS = [NUMBERS, RULES, PROSE, CODE, WORLD, *PROSE.splitlines(), *CODE.splitlines()] * 3
SAMPLES = [PROSE, CODE, WORLD, "a  b   c\n\n\n d\t\t1 12 123", " leading and trailing  ", ""]

GPT2 = r"'(?:[sdmt]|ll|ve|re)| ?\p{L}+| ?\p{N}+| ?[^\s\p{L}\p{N}]+|\s+(?!\S)|\s+"


def train(size: int, splitter: object, specials: list[str], texts: list[str] = CORPUS) -> Tokenizer:
    """A byte-level BPE tokenizer of ``size`` tokens."""
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = splitter
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        initial_alphabet=ByteLevel.alphabet(),
        special_tokens=specials,
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    return tokenizer


def gpt2_style() -> Tokenizer:
    """GPT-2's regex; <|end|> is 0."""
    return train(800, ByteLevel(add_prefix_space=False), ["<|end|>", "<|sys|>"])


def digit_style() -> Tokenizer:
    """Digits one by one, punctuation with line ends; <s> is 0, </s> is 1, <tool> is added text."""
    pattern = Regex(r" ?\p{L}+|\p{N}| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+")
    split = pre_tokenizers.Split(pattern, "isolated")
    bytewise = ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer = train(600, pre_tokenizers.Sequence([split, bytewise]), ["<s>", "</s>"])
    tokenizer.add_tokens(["<tool>"])
    return tokenizer


def write(folder: Path, tokenizer: Tokenizer, eos: str, **config: object) -> str:
    """Save a tokenizer as Hugging Face does; its spec for load_vocabulary."""
    folder.mkdir(parents=True, exist_ok=True)
    tokenizer.save(str(folder / "tokenizer.json"))
    config = {"eos_token": eos} | config
    (folder / "tokenizer_config.json").write_text(json.dumps(config))
    return f"hf:{folder}"


def nested() -> tuple[Tokenizer, Tokenizer]:
    """(coarse, fine): two tokenizers over a, b and space; the fine one stops merging earlier."""
    words = ["ab", "abab", "aab", "ba", "bab", "abba", "b", "aba", "baab", "a", "bb"]
    rng = np.random.default_rng(5)
    texts = [" ".join(rng.choice(words, 12)) for _ in range(40)]
    coarse = train(256 + 1 + 12, ByteLevel(add_prefix_space=False), ["<|end|>"], texts)
    spec = json.loads(coarse.to_str())
    vocab, merges = spec["model"]["vocab"], spec["model"]["merges"][:4]
    kept = {left + right for left, right in merges}
    made = {left + right for left, right in spec["model"]["merges"]}
    spec["model"]["vocab"] = {t: i for t, i in vocab.items() if t in kept or t not in made}
    spec["model"]["merges"] = merges
    return coarse, Tokenizer.from_str(json.dumps(spec))


def characters(count: int) -> Vocabulary:
    """All bytes, and ``count`` Chinese characters as tokens of their own."""
    tokens = [bytes([byte]) for byte in range(256)]
    tokens += [chr(0x4E00 + n).encode() for n in range(count)]
    ids = {token: i for i, token in enumerate(tokens)}

    def encode(text: bytes) -> tuple[int, ...]:
        found, at = [], 0
        while at < len(text):
            length = 3 if text[at : at + 3] in ids else 1
            found.append(ids[text[at : at + length]])
            at += length
        return tuple(found)

    return Vocabulary(
        tokens=tuple(tokens),
        kinds=(Kind.BYTE,) * len(tokens),
        specials={},
        start=(),
        end=frozenset(),
        fingerprint=f"{count:064x}",
        chat_template=None,
        encoder=encode,
    )


def as_tiktoken(vocabulary: Vocabulary) -> tiktoken.Encoding:
    """The same merges, with GPT-2's regex, as a tiktoken encoding: text, then <|endoftext|>."""
    texts = [token for token in vocabulary.tokens if token]
    ranks = {token: rank for rank, token in enumerate(texts)}
    special = {"<|endoftext|>": len(ranks)}
    return tiktoken.Encoding("test", pat_str=GPT2, mergeable_ranks=ranks, special_tokens=special)


def hash_model(name: str, vocabulary: Vocabulary, sharpness: float = 2.0) -> Model:
    """Any distribution will do, if it is a function of the path: here of its last four tokens."""

    @lru_cache(1 << 14)
    def chances(last: tuple[int, ...]) -> NDArray[np.float64]:
        digest = hashlib.blake2b(f"{name} {last}".encode()).digest()
        rng = np.random.default_rng(int.from_bytes(digest[:8], "little"))
        weights = np.exp(sharpness * rng.standard_normal(len(vocabulary.tokens)))
        return weights / weights.sum()

    return lambda path: chances(path[-4:])


def canonical_model(
    name: str, vocabulary: Vocabulary, fixed: int, alphabet: bytes, longest: int = 1000
) -> Model:
    """A hash model that after ``fixed`` ids writes canonical paths over ``alphabet`` only.

    Texts end after ``longest`` bytes at the latest.
    """
    plain = hash_model(name, vocabulary, 1.0)
    usable = [
        t for t, token in enumerate(vocabulary.tokens) if token and set(token) <= set(alphabet)
    ]

    @lru_cache(1 << 14)
    def chances(path: tuple[int, ...]) -> NDArray[np.float64]:
        weights = np.zeros(len(vocabulary.tokens))
        weights[list(vocabulary.end)] = plain(path)[list(vocabulary.end)]
        for t in usable:
            grown = (*path[fixed:], t)
            text = vocabulary.decode(grown)
            if len(text) <= longest and vocabulary.encode(text) == grown:
                weights[t] = plain(path)[t]
        return weights / weights.sum()

    return chances


def evaluate(model: Model, plan: Plan, sets: Sets) -> Masses:
    """What a pair would answer, path by path."""
    with np.errstate(divide="ignore"):
        paths = [_path(plan.tree, node) for node in range(len(plan.tree.tokens))]
        nodes = [np.log(model(path[:-1])[path[-1]]) for path in paths]
        sums = []
        for node, low, high in zip(sets.nodes, sets.ptr[:-1], sets.ptr[1:], strict=True):
            chances = np.asarray(model(_path(plan.tree, int(node))))
            sums.append(np.log(math.fsum(chances[sets.ids[low:high]])))
    return Masses(np.array(sums), np.array(nodes))


def offsets(
    bridge: Bridge,
    plan: Plan,
    candidates: Sequence[int],
    *models: Model | Masses,
    chances: Sequence[float] | None = None,
    passes: int = 1,
) -> Offsets:
    """The whole way for an expert and an anti-expert that share a rendering.

    ``passes``: how many the bridge may add to the first.
    """
    return bridge.offsets(*readings(bridge, plan, candidates, models, chances, passes))


def readings(
    bridge: Bridge,
    plan: Plan,
    candidates: Sequence[int],
    models: Sequence[Model | Masses],
    chances: Sequence[float] | None = None,
    passes: int = 1,
) -> list[Reading]:
    """What each of some models that share a rendering makes of the candidates."""
    while True:
        sets = bridge.sets(plan, candidates, chances)
        masses = [m if isinstance(m, Masses) else evaluate(m, plan, sets) for m in models]
        given = any(isinstance(m, Masses) for m in models)
        deeper = None if given or not passes else bridge.deeper(plan, sets, masses)
        if deeper is None:
            return [bridge.reading(plan, sets, m) for m in masses]
        plan, passes = deeper, passes - 1


def _path(tree: Tree, node: int) -> tuple[int, ...]:
    branch: list[int] = []
    while node >= 0:
        branch.append(tree.tokens[node])
        node = tree.parents[node]
    return tree.trunk + tuple(reversed(branch))


def contexts(upstream: Vocabulary, count: int, fixed: tuple[int, ...]) -> list[Context]:
    """Places in running text, at every kind of boundary, most with text already generated."""
    rng = np.random.default_rng(7)
    found = []
    for n in range(count):
        text = SAMPLES[n % 5].encode()
        cut = int(rng.integers(0, max(1, len(text) - 40)))
        start = int(rng.integers(max(0, cut - 60), cut + 1))
        ids = upstream.encode(text[cut:])
        found.append(Context(fixed, text[start:cut], ids[: int(rng.integers(0, 8))]))
    return found
