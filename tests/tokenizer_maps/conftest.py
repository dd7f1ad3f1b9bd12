"""Vocabularies for the tests of this package, trained once a session."""

from pathlib import Path

import pytest

from tests.tokenizer_maps import worlds
from tokenizer_maps import TokenMap, Vocabulary, load_vocabulary


@pytest.fixture(scope="session")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("tokenizers")


@pytest.fixture(scope="session")
def gpt(folder: Path) -> Vocabulary:
    """A remote-like vocabulary: numbers in one piece, GPT-2's regex."""
    return load_vocabulary(worlds.write(folder / "gpt", worlds.gpt2_style(), "<|end|>"))


@pytest.fixture(scope="session")
def digits(folder: Path) -> Vocabulary:
    """A pair-like vocabulary: smaller, digits one by one."""
    return load_vocabulary(worlds.write(folder / "digits", worlds.digit_style(), "</s>"))


@pytest.fixture(scope="session")
def token_map(gpt: Vocabulary, digits: Vocabulary) -> TokenMap:
    return TokenMap.build(gpt, digits)
