"""Slots: handed out once, shared by count, free when nobody refers to them."""

import numpy as np
import torch

from adapter.pair.pool import Pool


def test_slots_are_shared_by_count_and_never_more_than_most(monkeypatch):
    monkeypatch.setattr("adapter.pair.pool._FIRST", 4)
    pool = Pool(10)
    first, second = pool.take(3), pool.take(6)
    assert sorted([*first, *second]) == list(range(9))
    assert pool.take(2) is None
    pool.share(first[:2])
    pool.drop(first)
    assert pool.used == 8
    assert sorted(pool.take(2)) == sorted({9, first[2]})
    pool.drop(first[:2])
    assert sorted(pool.take(2)) == sorted(first[:2])
    assert pool.take(1) is None


def test_what_was_written_survives_growing(monkeypatch):
    monkeypatch.setattr("adapter.pair.pool._FIRST", 2)
    pool = Pool(64)
    slots = pool.take(2)
    keys, values = torch.randn(2, 3, 5), torch.randn(2, 3, 4)
    pool.write(0, torch.from_numpy(slots), keys, values)
    more = pool.take(20)
    pool.write(0, torch.from_numpy(more), torch.randn(20, 3, 5), torch.randn(20, 3, 4))
    found = pool.read(0, torch.from_numpy(slots))
    torch.testing.assert_close(found, (keys, values))
    assert pool.token_bytes() == 3 * (5 + 4) * 4
    assert not np.intersect1d(slots, more).size
