"""Stored features as a torch data set, joined with the original samples where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch
from torch.utils.data import Dataset

from pipeline.members import MemberIndex
from pipeline.reader import FeatureStore


class FeatureDataset(Dataset[dict[str, Any]]):
    """Map-style: one item a row that is good in the groups of `taps`, in the order of shard and position.

    An item is {"key", "shard", "row", "caption" (empty where there is none), and per tap a tensor [C, h, w] in the
    stored dtype}; with `join` also the bytes of the sample's other members, by field:
    {"members": {"seg.png": b"...", ...}}.

    Safe in DataLoader workers, started by fork or by spawn: what is open in one process is never used in another.

    Args:
        url: of the store.
        taps: names as in `FeatureStore.taps`; default all.
        join: root URL under which the original shards lie, by their ids, or `embedded`; None to read features only.
        fields: with `join`, the fields to read; default all.

    Raises:
        KeyError: a tap that is not stored.
    """

    def __init__(
        self,
        url: str,
        taps: Sequence[str] | None = None,
        *,
        join: str | None = None,
        fields: Sequence[str] | None = None,
    ) -> None:
        self._store = FeatureStore(url)
        self.taps = list(self._store.taps) if taps is None else list(taps)
        groups = dict.fromkeys(self._store.layout(name).group for name in self.taps)
        self._index = self._store.good(list(groups)).select(["key", "shard", "row", "caption"])
        self._members = None if join is None else MemberIndex(join, fields)

    def __len__(self) -> int:
        return len(self._index)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch at once, which a DataLoader prefers: one read a tap."""
        places = [range(len(self))[item] for item in items]
        lines = self._index.take(places).to_pylist()
        maps = self._store.read([line["row"] for line in lines], self.taps)
        for place, line in enumerate(lines):
            line["caption"] = line["caption"] or ""  # which batches, as None does not
            line.update({name: torch.from_numpy(values[place].copy()) for name, values in maps.items()})
            if self._members is not None:
                line["members"] = self._members.read(line["shard"], line["key"])
        return lines
