"""Rows that were read once and stay in memory."""

from __future__ import annotations

from collections.abc import Mapping
from threading import Lock
from typing import Any

from torch import Tensor

Item = Mapping[str, Any]


class RowCache:
    """Keeps what came first, up to so many bytes, and gives nothing up for what comes later.

    An epoch reads each row once, so that to keep the newest would keep what is wanted last. A copy for another process
    begins empty.

    Args:
        most: bytes; 0 keeps nothing.
    """

    def __init__(self, most: int) -> None:
        self._most = self._left = most
        self._items: dict[int, Item] = {}
        self._lock = Lock()  # reading ahead is a thread of its own

    def __contains__(self, row: int) -> bool:
        return row in self._items

    def keep(self, items: Mapping[int, Item]) -> None:
        """Keep copies, as far as there is room."""
        for row, item in items.items():
            size = _bytes(item)
            with self._lock:
                if row not in self._items and size <= self._left:
                    self._left -= size
                    self._items[row] = _cloned(item)

    def copy(self, row: int) -> dict[str, Any]:
        """What was kept of a row; its tensors are the caller's own."""
        return _cloned(self._items[row])

    def __reduce__(self) -> tuple[type[RowCache], tuple[int]]:
        return RowCache, (self._most,)


def _bytes(item: Item) -> int:
    values = [
        one for value in item.values() for one in (value.values() if isinstance(value, dict) else [value])
    ]
    tensors = sum(value.nbytes for value in values if isinstance(value, Tensor))
    return tensors + sum(len(value) for value in values if isinstance(value, bytes))


def _cloned(item: Item) -> dict[str, Any]:
    return {name: value.clone() if isinstance(value, Tensor) else value for name, value in item.items()}
