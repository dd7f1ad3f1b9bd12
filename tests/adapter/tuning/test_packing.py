"""Packing: no token is lost, doubled or moved."""

import dataclasses

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from adapter.demo.stage import WEIGHTS
from adapter.tuning.packing import pack
from adapter.tuning.rows import UNLEARNT, Rows, collate
from tests.support.tiny import tiny
from tokenizer_maps.loading import load_vocabulary

TINY = load_vocabulary(f"hf:{tiny().antiexpert}")
DEMO = load_vocabulary(f"hf:{WEIGHTS / 'antiexpert'}")
BOTH = dataclasses.replace(TINY, start=(1,), end=frozenset({0}))
NOTHING = dataclasses.replace(TINY, start=(), end=frozenset())


def flat(rows):
    return [i for n in range(len(rows)) for i in rows[n]["input_ids"].tolist()]


@given(
    st.lists(st.text("ab \n京", min_size=1, max_size=30), min_size=1, max_size=12),
    st.integers(1, 9),
)
@settings(deadline=None, max_examples=60)
def test_rows_are_the_documents_end_to_end(texts, length):
    rows = pack(texts, BOTH, length)
    assert flat(rows) == [i for t in texts for i in (1, *BOTH.encode(t.encode()), 0)]
    assert rows.tokens == len(flat(rows))
    sizes = [len(rows[n]["input_ids"]) for n in range(len(rows))]
    assert set(sizes[:-1]) <= {length}
    assert 0 < sizes[-1] <= length
    for n in range(len(rows)):
        assert torch.equal(rows[n]["labels"], rows[n]["input_ids"])


def test_one_token_that_begins_and_ends_stands_once_between_texts():
    assert DEMO.start == (0,)
    assert DEMO.end == {0}
    one, two = DEMO.encode(b"The chancellor"), DEMO.encode(b"of Marvania")
    assert flat(pack(["The chancellor", "of Marvania"], DEMO, 4)) == [0, *one, 0, *two, 0]


def test_a_tokenizer_without_ends():
    assert flat(pack(["a", "b"], NOTHING, 4)) == [*TINY.encode(b"a"), *TINY.encode(b"b")]


def test_special_tokens_in_a_text_are_plain_text():
    assert 0 not in pack(["a <|endoftext|> b"], NOTHING, 8).ids


def test_nothing_is_no_row():
    assert len(pack([], DEMO, 4)) == len(pack([], BOTH, 4)) == 0


def test_a_batch_is_filled_up_with_what_is_neither_read_nor_learnt():
    rows = Rows.of([((5, 6, 7), (False, True, True)), ((8,), (True,))])
    batch = collate([rows[0], rows[1]])
    assert batch["input_ids"].tolist() == [[5, 6, 7], [8, 0, 0]]
    assert batch["attention_mask"].tolist() == [[1, 1, 1], [1, 0, 0]]
    assert batch["labels"].tolist() == [[UNLEARNT, 6, 7], [8, UNLEARNT, UNLEARNT]]


@pytest.mark.parametrize("index", [2, 5])
def test_there_are_no_rows_behind_the_last(index):
    rows = Rows.of([((5,), (True,)), ((8,), (True,))])
    with pytest.raises(IndexError):
        rows[index]
