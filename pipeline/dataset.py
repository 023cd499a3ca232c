"""Stored features as a torch data set, joined with the original samples where asked."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import pyarrow.compute as pc
import torch
from torch.utils.data import Dataset

from pipeline.members import MemberIndex
from pipeline.reader import FeatureStore


class FeatureDataset(Dataset[dict[str, Any]]):
    """Map-style: one item a good row, in the order of shard and position.

    An item is {"key", "shard", "row", "caption", and per tap a tensor [C, h, w] in the stored dtype}; with `join`
    also the bytes of the sample's other members, by field: {"members": {"seg.png": b"...", ...}}.

    Safe in DataLoader workers, started by fork or by spawn: nothing is opened before the first item is read there.

    Args:
        url: of the store.
        taps: names as in `FeatureStore.taps`; default all.
        join: root URL under which the original shards lie, by their ids; None to read features only.
        fields: with `join`, the fields to read; default all.
    """

    def __init__(
        self,
        url: str,
        taps: Sequence[str] | None = None,
        *,
        join: str | None = None,
        fields: Sequence[str] | None = None,
    ) -> None:
        store = FeatureStore(url)
        self.taps = list(store.taps) if taps is None else list(taps)
        groups = {name.partition("/")[0] for name in self.taps}
        index = store.index
        for group in groups:
            index = index.filter(pc.equal(pc.struct_field(index["groups"], [group, "status"]), "ok"))
        for name in self.taps:
            store.layout(name)
        self._index = index.select(["key", "shard", "row", "caption"]).combine_chunks()
        self._store = store
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
            line.update({name: torch.from_numpy(values[place].copy()) for name, values in maps.items()})
            if self._members is not None:
                line["members"] = self._members.read(line["shard"], line["key"])
        return lines
