"""Encoding the tail alone equals encoding everything, and the pair's readings keep their laws."""

import numpy as np
import pytest

from tests.support import vocabularies
from tests.tokenizer_maps import worlds
from tests.tokenizer_maps.strings import STRINGS
from tokenizer_maps import Context, FastBridge, Plan, TokenMap, Vocabulary
from tokenizer_maps.canonical import Encoder, anchor

START = 10**6  # stands for a start token
NAMES = ["gpt", "digits", *vocabularies.SOURCES]


@pytest.fixture(params=NAMES)
def vocabulary(request: pytest.FixtureRequest, gpt: Vocabulary, digits: Vocabulary) -> Vocabulary:
    if request.param in ("gpt", "digits"):
        return gpt if request.param == "gpt" else digits
    reason = vocabularies.missing(request.param)
    if reason is not None:
        pytest.skip(reason)
    return vocabularies.real(request.param)


def alone(vocabulary: Vocabulary) -> FastBridge:
    """A bridge for plans only: what the upstream's tokens are does not matter to them."""
    tokens = vocabulary.tokens
    order = np.array(sorted((i for i, t in enumerate(tokens) if t), key=lambda i: (tokens[i], i)))
    none = np.zeros(len(tokens) + 1, np.int32)
    return FastBridge(
        TokenMap(vocabulary, vocabulary, order, none, none[:0], none[1:] - 1), frozenset()
    )


def paths(plan: Plan) -> dict[tuple[int, ...], bytes]:
    """The rest of each head by its path, without the start token."""
    tree = plan.tree
    return {
        (tree.trunk + tuple(tree.tokens[n] for n in head.path_nodes))[1:]: head.rest
        for head in plan.heads
    }


def test_readings_of_a_stream(vocabulary: Vocabulary) -> None:
    """At every byte of every kind of text, what is to come is still possible."""
    bridge, steps = alone(vocabulary), 0
    assert len(STRINGS) >= 40
    for name, text in STRINGS.items():
        whole = vocabulary.encode(text)
        assert vocabulary.decode(whole) == text
        ends = np.cumsum([0, *(len(vocabulary.tokens[i]) for i in whole)])
        for at in range(len(text) + 1):
            seen = text[:at]
            plan = bridge.plan(Context((START,), seen, ()))
            found = paths(plan)
            trunk = plan.tree.trunk[1:]
            assert trunk == whole[: len(trunk)], (name, at)
            for path, rest in found.items():
                assert vocabulary.decode(path) + rest == seen, (name, at)
            canonical = {vocabulary.encode(seen[: at - len(r)]) for r in found.values()}
            assert canonical <= found.keys(), (name, at)
            through = whole[: int(np.searchsorted(ends, at, "right")) - 1]
            assert through in found, (name, at)
            steps += 1
    assert steps > 1000


def test_growing_texts_are_encoded_as_if_new(vocabulary: Vocabulary) -> None:
    """Byte by byte and in leaps, behind a text long enough that only the tail is read."""
    for n, text in enumerate(STRINGS.values()):
        encoder = Encoder(vocabulary)
        before = (worlds.PROSE + worlds.CODE).encode()[: 300 + n]
        step = 1 if n % 4 == 0 else 7
        for at in range(0, len(text) + 1, step):
            whole = before + text[:at]
            assert encoder.encode(whole).ids == vocabulary.encode(whole)
        for by in range(0, 40, 3):
            known = encoder.encode(before + text)
            shorter = known.text[: len(known.text) - by]
            path = encoder.path(shorter, known, len(shorter))
            assert known.ids[: path.kept] + path.tail == vocabulary.encode(shorter)


def test_only_the_tail_is_encoded(vocabulary: Vocabulary) -> None:
    encoder = Encoder(vocabulary)
    text = (worlds.PROSE * 20).encode()
    known = encoder.encode(text)
    path = encoder.path(text + b" and", known, len(text))
    assert path.kept > 0.9 * len(known.ids)
    assert vocabulary.decode(path.tail).endswith(b" and")


def test_texts_that_turn_back_are_encoded_as_if_new(vocabulary: Vocabulary) -> None:
    """One encoder, many texts that begin alike; the oldest are forgotten."""
    encoder, text = Encoder(vocabulary), (worlds.CODE + worlds.WORLD + worlds.PROSE).encode()
    rng = np.random.default_rng(11)
    for _ in range(120):
        cut, more = rng.integers(0, len(text), 2)
        whole = text[:cut] + text[more : more + 9]
        assert encoder.encode(whole).ids == vocabulary.encode(whole)
        assert len(encoder._known) <= 32


def test_bytes_that_no_token_spells_are_no_obstacle(gpt: Vocabulary) -> None:
    """Such a text is encoded whole: its tokens do not say where they stand."""

    def encode(data: bytes) -> list[int]:
        return list(gpt.encode(data.replace(b"\x04", b"")))

    lossy = Vocabulary(
        tokens=gpt.tokens,
        kinds=gpt.kinds,
        specials=gpt.specials,
        start=(),
        end=gpt.end,
        fingerprint=gpt.fingerprint,
        chat_template=None,
        encoder=encode,
    )
    encoder, text = Encoder(lossy), (worlds.PROSE * 2).encode()
    for whole in (text, text + b"\x04", text + b"\x04 and", text + b"\x04 and then"):
        assert encoder.encode(whole).ids == lossy.encode(whole)


def test_the_upstream_is_read_again_from_where_it_begins_alike(vocabulary: Vocabulary) -> None:
    text = (worlds.CODE + worlds.PROSE).encode()
    ids = vocabulary.encode(text)
    for end in range(1, len(ids), 7):
        length = anchor(vocabulary, ids[:end], 64)
        spelt = vocabulary.decode(ids[:end])
        assert length >= min(64, len(spelt))
        tail = spelt[len(spelt) - length :]
        if length < len(spelt):
            count = len(vocabulary.encode(spelt[: len(spelt) - length]))
            assert vocabulary.encode(tail)[0] == ids[count]
