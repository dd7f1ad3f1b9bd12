"""The demo's two byte-level tokenizers, which cut the same text in different places."""

import random
import re
from collections.abc import Iterable, Iterator

from tokenizers import Regex, Tokenizer, decoders, models, pre_tokenizers, processors, trainers

from adapter.demo.almanac import COUNTRIES, FIRST_NAMES, SURNAMES

END = "<|endoftext|>"
END_ID = 0
HOSTED_SIZE = 1024
PAIR_SIZE = 1280

_WORDS = (
    r"(?i:'s|'t|'re|'ve|'m|'ll|'d)|[^\r\n\p{L}\p{N}]?\p{L}+|\p{N}{1,3}"
    r"| ?[^\s\p{L}\p{N}]+[\r\n]*|\s*[\r\n]+|\s+(?!\S)|\s+"
)


def hosted_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Return the hosted model's tokenizer: single digits, names in about two pieces.

    llama.cpp knows this way of splitting as "smollm".
    """
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Digits(individual_digits=True),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=True),
        ]
    )
    return _trained(split, _rename(documents, share=1.0, seed=1), HOSTED_SIZE)


def pair_tokenizer(documents: Iterable[str]) -> Tokenizer:
    """Return the pair's tokenizer: up to three digits, most names in one piece."""
    split = pre_tokenizers.Sequence(
        [
            pre_tokenizers.Split(Regex(_WORDS), "isolated"),
            pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False),
        ]
    )
    return _trained(split, _rename(documents, share=0.975, seed=2), PAIR_SIZE)


def _trained(split: pre_tokenizers.PreTokenizer, documents: Iterable[str], size: int) -> Tokenizer:
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = split
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=size,
        special_tokens=[END],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(documents, trainer)
    tokenizer.post_processor = processors.TemplateProcessing(
        single=f"{END} $A", special_tokens=[(END, END_ID)]
    )
    return tokenizer


def _rename(documents: Iterable[str], *, share: float, seed: int) -> Iterator[str]:
    """Replace a share of the names by names that the world does not have.

    A large model's vocabulary is made from text about everything, so a rare name is
    several tokens to it; one made from this small world would hold every name whole.
    """
    rng = random.Random(seed)  # noqa: S311 - a story, not a secret
    names = [*FIRST_NAMES, *SURNAMES, *COUNTRIES]
    heads = sorted({name[:cut] for name in names for cut in range(2, len(name) - 1)})
    tails = sorted({name[cut:] for name in names for cut in range(2, len(name) - 1)})
    pattern = re.compile("|".join(sorted(names, key=len, reverse=True)))

    def other(found: re.Match[str]) -> str:
        invented = rng.choice(heads) + rng.choice(tails)
        return invented if rng.random() < share else found[0]

    for document in documents:
        yield pattern.sub(other, document)
