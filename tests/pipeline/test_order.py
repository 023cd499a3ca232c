"""The order of an epoch, whoever asks for it."""

from __future__ import annotations

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.order import Rows, epoch_order, global_batches, share

BLOCKS = st.lists(st.integers(0, 9), max_size=60).map(lambda blocks: np.array(blocks, np.int64))
SEEDS, WINDOWS = st.integers(0, 2**40), st.none() | st.integers(1, 12)


@settings(deadline=None)
@given(BLOCKS, SEEDS, st.integers(0, 5), WINDOWS)
def test_each_place_comes_once(blocks: Rows, seed: int, epoch: int, window: int | None) -> None:
    order, windows = epoch_order(blocks, seed, epoch, window)
    assert sorted(order) == list(range(len(blocks)))
    assert len(windows) == len(order) and (np.diff(windows) >= 0).all()


@settings(deadline=None)
@given(BLOCKS, SEEDS, st.integers(1, 12))
def test_windows_hold_whole_blocks_and_are_even(blocks: Rows, seed: int, window: int) -> None:
    """A block in two windows is read twice; a small last window is mixed badly."""
    order, windows = epoch_order(blocks, seed, 0, window)
    held = [set(blocks[order[windows == number]]) for number in np.unique(windows)]
    assert sum(map(len, held)) == len(set(blocks))
    assert all(len(one) <= window for one in held)
    assert not held or max(map(len, held)) - min(map(len, held)) <= 1


def test_rows_are_shuffled_within_a_window_and_blocks_among_windows() -> None:
    order, windows = epoch_order(np.repeat(np.arange(40), 5), 0, 0, 4)
    for number in range(10):
        rows = order[windows == number]
        assert np.abs(np.diff(rows // 5)).max() > 4, "blocks come from all over"
        assert (np.diff(rows // 5) != 0).sum() > 8, "rows of a block do not stay together"


def test_epochs_and_seeds_differ_and_repeat() -> None:
    blocks = np.arange(50)
    orders = [epoch_order(blocks, seed, epoch)[0].tolist() for seed in (0, 1) for epoch in (0, 1)]
    assert len({tuple(order) for order in orders}) == 4
    assert orders[3] == epoch_order(blocks, 1, 1)[0].tolist()


def test_the_order_is_pinned() -> None:
    """It must not change with a release of numpy, or of ours: runs are resumed by it."""
    assert epoch_order(np.arange(8), 3, 2)[0].tolist() == [2, 3, 6, 4, 1, 7, 5, 0]
    assert epoch_order(np.arange(8) // 2, 3, 2, 2)[0].tolist() == [7, 6, 4, 5, 2, 0, 3, 1]


def test_every_order_is_as_likely() -> None:
    """Of 3 places there are 6 orders, each seen about 500 times in 3000; 5 sigma are 102."""
    seen = [tuple(epoch_order(np.arange(3), 0, epoch)[0].tolist()) for epoch in range(3000)]
    counts = [seen.count(order) for order in set(seen)]
    assert len(counts) == 6 and min(counts) > 398 and max(counts) < 602


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 10), st.integers(0, 4), st.booleans())
def test_global_batches(n: int, size: int, start: int, drop_last: bool) -> None:
    order = np.arange(100, 100 + n)
    batches = global_batches(order, size, start * size, drop_last=drop_last)
    left = order[start * size :].tolist()
    assert [row for batch in batches for row in batch] == (
        left[: len(left) // size * size] if drop_last else left
    )
    assert all(len(batch) == size for batch in batches[:-1])


@settings(deadline=None)
@given(st.integers(0, 40), st.integers(1, 9))
def test_shares_are_even_and_lose_nothing(n: int, ranks: int) -> None:
    parts = [share(np.arange(n), rank, ranks) for rank in range(ranks)]
    assert np.concatenate(parts).tolist() == list(range(n))
    assert max(map(len, parts)) - min(map(len, parts)) <= 1
