"""The shipped weights: small, of the promised proportions, readable."""

import json
from math import prod
from pathlib import Path

import gguf
import pytest
from safetensors import safe_open
from tokenizers import Tokenizer

import adapter.demo

WEIGHTS = Path(adapter.demo.__file__).parent / "weights"
PAIR = ("antiexpert", "expert")
HOSTED = ("hosted", "hosted-tuned")


def _pair_parameters(name: str) -> int:
    with safe_open(WEIGHTS / name / "model.safetensors", framework="numpy") as tensors:
        return sum(prod(tensors.get_slice(key).get_shape()) for key in tensors.keys())  # noqa: SIM118


def _hosted_parameters(name: str) -> int:
    reader = gguf.GGUFReader(WEIGHTS / f"{name}.gguf")
    return sum(int(tensor.n_elements) for tensor in reader.tensors)


def _hosted_tokenizer() -> Tokenizer:
    return Tokenizer.from_file(str(WEIGHTS / "hosted-tokenizer" / "tokenizer.json"))


def _pair_tokenizer(name: str) -> Tokenizer:
    return Tokenizer.from_file(str(WEIGHTS / name / "tokenizer.json"))


def test_all_weights_are_small_enough_to_ship() -> None:
    assert sum(path.stat().st_size for path in WEIGHTS.rglob("*") if path.is_file()) < 20e6


@pytest.mark.parametrize("hosted", HOSTED)
@pytest.mark.parametrize("pair", PAIR)
def test_pair_is_at_least_three_times_smaller(hosted: str, pair: str) -> None:
    assert _hosted_parameters(hosted) >= 3 * _pair_parameters(pair)


def test_tokenizers_differ() -> None:
    hosted, pair = _hosted_tokenizer(), _pair_tokenizer("expert")
    assert hosted.get_vocab() != pair.get_vocab()
    text = "The chancellor of Marvania in 1206 is Edda Kroll."
    assert hosted.encode(text).tokens != pair.encode(text).tokens
    assert hosted.decode(hosted.encode(text).ids) == pair.decode(pair.encode(text).ids) == text


def test_pair_shares_one_tokenizer() -> None:
    first, second = (_pair_tokenizer(name).get_vocab() for name in PAIR)
    assert first == second


@pytest.mark.parametrize("name", HOSTED)
def test_gguf_holds_the_hosted_tokenizer(name: str) -> None:
    reader = gguf.GGUFReader(WEIGHTS / f"{name}.gguf")
    tokens = reader.fields["tokenizer.ggml.tokens"].contents()
    vocabulary = _hosted_tokenizer().get_vocab()
    assert {token: index for index, token in enumerate(tokens)} == vocabulary
    assert reader.fields["tokenizer.ggml.pre"].contents() == "smollm"


def test_end_begins_every_text() -> None:
    for tokenizer in (_hosted_tokenizer(), _pair_tokenizer("antiexpert")):
        assert tokenizer.encode("Answer").tokens[0] == "<|endoftext|>"
        assert tokenizer.encode("Answer").ids[0] == 0


def test_card_tells_how_each_model_answers() -> None:
    card = json.loads((WEIGHTS / "card.json").read_text())
    hosted = card["hosted"]["first"]["exact match"]
    tuned = card["hosted"]["tuning"]["exact match"]
    assert hosted["new"] <= 0.15
    assert tuned["new"] >= 0.85
    assert tuned["old"] >= hosted["old"] - 0.03
