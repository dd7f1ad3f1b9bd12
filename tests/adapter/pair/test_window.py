"""The pair's context window."""

from adapter.pair.window import cut, fits
from tokenizer_maps.bridge import Tree


def test_a_window_keeps_head_and_tail_and_moves_in_blocks():
    def cut_at(length):
        return cut(Tree(tuple(range(length)), (9, 9), (-1, -1)), 16, head=2).trunk

    assert cut_at(14) == tuple(range(14))
    assert cut_at(15) == (0, 1, *range(6, 15))
    assert cut_at(18) == (0, 1, *range(6, 18))  # the same cut: the KV cache survives
    assert cut_at(19) == (0, 1, *range(10, 19))
    assert all(fits(Tree(cut_at(n), (9, 9), (-1, -1)), 16) for n in range(1, 60))
