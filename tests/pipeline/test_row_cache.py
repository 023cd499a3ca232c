"""Rows that stay in memory."""

from __future__ import annotations

import pickle

import torch

from pipeline.row_cache import RowCache


def item(number: float) -> dict[str, object]:
    """40 bytes."""
    return {"map": torch.full((8,), float(number)), "members": {"txt": b"12345678"}, "name": "x" * 100}


def test_keeps_what_came_first_and_no_more_than_it_may() -> None:
    cache = RowCache(100)
    cache.keep({row: item(row) for row in range(3)})
    cache.keep({0: item(9), 3: item(3)})
    assert [row in cache for row in range(4)] == [True, True, False, False]
    assert cache.copy(0)["map"][0] == 0


def test_what_is_kept_cannot_be_changed_from_outside() -> None:
    """Else an epoch's augmentation, done in place, would be done again in the next."""
    cache, given = RowCache(100), item(1)
    cache.keep({0: given})
    given["map"].zero_()  # type: ignore[attr-defined]
    cache.copy(0)["map"].zero_()
    assert cache.copy(0)["map"][0] == 1


def test_another_process_begins_with_an_empty_one() -> None:
    """Else each worker is sent all that this process holds."""
    cache = RowCache(100)
    cache.keep({row: item(row) for row in range(2)})
    copy = pickle.loads(pickle.dumps(cache))
    assert 0 not in copy
    copy.keep({row: item(row) for row in range(2)})
    assert 0 in copy and 1 in copy
