"""Stored features as torch data sets, joined with the original samples and their labels where asked."""

from __future__ import annotations

import copy
import hashlib
import json
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from typing import Any, Self

import numpy as np
import pyarrow as pa
import torch
from numpy.typing import NDArray
from torch import Tensor
from torch.utils.data import Dataset

from pipeline.frames import Frame
from pipeline.joined import Join, LabelCheck
from pipeline.labels import Labels
from pipeline.reader import FeatureStore
from pipeline.row_cache import RowCache
from pipeline.storage import StorageError

_COLUMNS = ["key", "shard", "row", "caption", "height", "width"]
_SHOWN = ("key", "shard", "row", "caption")
_REQUEST_BYTES = 2**20  # from here on, a request's bytes take an object store longer than the request itself

Maps = Mapping[str, Sequence[Tensor] | Tensor]


class StoredRows(Dataset[dict[str, Any]]):
    """What data sets of stored rows have in common; see `FeatureDataset`."""

    def __init__(
        self,
        url: str,
        taps: Sequence[str] | None,
        join: str | None,
        fields: Sequence[str] | None,
        labels: Labels | None,
        cache_bytes: int = 0,
    ) -> None:
        if join is None and (labels is not None or fields is not None):
            what = "fields" if labels is None else "labels"
            raise ValueError(
                f"{what} of {url} lie in the original shards; give `join`, the URL that these are under"
            )
        self._store = FeatureStore(url)
        self.taps = list(self._store.taps) if taps is None else list(taps)
        groups = dict.fromkeys(self._store.layout(name).group for name in self.taps)
        self.index: pa.Table = self._store.good(list(groups), _COLUMNS)
        """Key, shard, row, caption, height and width, a line an item."""
        image = self._store.manifest.identity["image"]
        self._image, self._fit = (image["size"][0], image["size"][1]), image["fit"]
        self._join = None if join is None else Join(join, fields, labels, self._image, self._fit)
        self._cache = RowCache(cache_bytes)

    @abstractmethod
    def _maps(self, rows: Sequence[int]) -> Maps:
        """By tap, a tensor [C, h, w] for each row."""

    def __len__(self) -> int:
        return len(self.index)

    def __getitem__(self, item: int) -> dict[str, Any]:
        return self.__getitems__([item])[0]

    def __getitems__(self, items: Sequence[int]) -> list[dict[str, Any]]:
        """A whole batch at once, which a DataLoader prefers: one read a tap."""
        lines = self._lines(items)
        missing = {line["row"]: line for line in lines if line["row"] not in self._cache}
        read = dict(zip(missing, self._read(list(missing.values())), strict=True))
        self._cache.keep(read)
        found = [read[row] if (row := line["row"]) in read else self._cache.copy(row) for line in lines]
        return [{name: line[name] for name in _SHOWN} | item for line, item in zip(lines, found, strict=True)]

    def subset(self, places: Sequence[int]) -> Self:
        """The same data set with some of its items, in this order; what is cached is shared."""
        subset = copy.copy(self)
        subset.index = self.index.take(np.arange(len(self))[np.asarray(places, np.int64)])
        return subset

    def frame(self, place: int) -> Frame:
        """Where an item's picture lies in the image that the network saw."""
        line = self._lines([place])[0]
        return Frame((line["height"], line["width"]), self._image, self._fit)

    def frames(self) -> list[Frame]:
        """Of all items, as `frame`."""
        sides = zip(self.index["height"].to_pylist(), self.index["width"].to_pylist(), strict=True)
        return [Frame(picture, self._image, self._fit) for picture in sides]

    def check_labels(self) -> LabelCheck:
        """Read every label once: which places are good (see `subset`), and what is wrong with the others.

        Raises:
            ValueError: the data set has no labels.
            FileNotFoundError, KeyError, OSError: shards or samples that are not there, or cannot be read.
        """
        if self._join is None or self._join.labels is None:
            raise ValueError(
                f"data set of {self._store.url} has no labels to check; give `labels` and `join`"
            )
        return self._join.check(self._lines(range(len(self))))

    @property
    def fingerprint(self) -> str:
        """Hash of what is served in which order: the store's identity, taps, shards and keys."""
        of = [
            self._store.manifest.identity,
            self.taps,
            *(self.index[name].to_pylist() for name in ("shard", "key")),
        ]
        return hashlib.sha256(json.dumps(of, sort_keys=True).encode()).hexdigest()

    def _lines(self, items: Sequence[int]) -> list[dict[str, Any]]:
        places = np.array([range(len(self))[item] for item in items], np.int64)
        lines: list[dict[str, Any]] = self.index.take(places).to_pylist()
        for line in lines:
            line["caption"] = line["caption"] or ""  # which batches, as None does not
        return lines

    def _read(self, lines: Sequence[dict[str, Any]]) -> list[dict[str, Any]]:
        if not lines:
            return []
        maps = self._maps([line["row"] for line in lines])
        items: list[dict[str, Any]] = [
            {name: maps[name][place] for name in maps} for place in range(len(lines))
        ]
        for item, more in zip(
            items, self._join.read(lines) if self._join else [], strict=self._join is not None
        ):
            item |= more
        return items


class FeatureDataset(StoredRows):
    """Map-style: one item a row that is good in the groups of `taps`, in the order of shard and position.

    An item is {"key", "shard", "row", "caption" (empty where there is none), and per tap a tensor [C, h, w] in the
    stored dtype}; with `join` also the bytes of the sample's other members, by field:
    {"members": {"seg.png": b"...", ...}}; with `labels` also {"label", "frame"}: the decoded label, over the image that
    the network saw, and how that lies over the original (`pipeline.frames`). Members are then given only if `fields`
    names them.

    Safe in DataLoader workers, started by fork or by spawn: what is open in one process is never used in another.

    Args:
        url: of the store.
        taps: names as in `FeatureStore.taps`; default all.
        join: root URL under which the original shards lie, by their ids, or `embedded`; None to read features only.
        fields: with `join`, the fields to read; default all.
        labels: with `join`, what to decode of the samples: see `pipeline.labels`. An item whose label is bad raises
            `BadLabel` when it is read; `check_labels` finds them before.
        cache_bytes: what was read stays in memory up to here, as stored: of this process; each worker has its own.

    Raises:
        KeyError: a tap that is not stored.
        ValueError: `labels` without `join`.
    """

    def __init__(
        self,
        url: str,
        taps: Sequence[str] | None = None,
        *,
        join: str | None = None,
        fields: Sequence[str] | None = None,
        labels: Labels | None = None,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(url, taps, join, fields, labels, cache_bytes)

    @property
    def blocks(self) -> NDArray[np.int64]:
        """For each item the number of the block that it lies in, [n]: rows that one request a tap reads.

        Blocks of the store, cut into pieces of about a megabyte a tap; rows of that size are blocks by themselves.
        """
        rows = self.index["row"].to_numpy()
        whole = self._store.manifest.rows_per_block
        piece = min(whole, -(-_REQUEST_BYTES * len(self.taps) // self.row_bytes))
        pieces: NDArray[np.int64] = rows // whole * -(-whole // piece) + rows % whole // piece
        return pieces

    @property
    def row_bytes(self) -> int:
        """What an item's maps take in memory."""
        return max(1, sum(self._store.layout(name).row_bytes for name in self.taps))

    def _maps(self, rows: Sequence[int]) -> Maps:
        found = self._store.read(rows, self.taps)
        for name, values in found.items():
            # Rows that are good in a group are finite in it: what reads as NaN is not stored any more.
            if (lost := np.isnan(values.reshape(len(rows), -1)[:, 0])).any():
                raise StorageError(
                    f"store {self._store.url}: {name} of row {rows[int(lost.argmax())]} is committed, and not there;"
                    " `gatehouse verify` says what is lost"
                )
        return {name: torch.from_numpy(values) for name, values in found.items()}


class PooledDataset(StoredRows):
    """As `FeatureDataset`, of pooled vectors: float32 maps [C, 1, 1], all of which are read at once and kept in memory.

    Args:
        url, taps, join, fields, labels, cache_bytes: as of `FeatureDataset`; what is cached are labels and members.

    Raises:
        KeyError: a tap that is not stored.
        ValueError: `labels` without `join`, or a store without pooled vectors.
    """

    def __init__(
        self,
        url: str,
        taps: Sequence[str] | None = None,
        *,
        join: str | None = None,
        fields: Sequence[str] | None = None,
        labels: Labels | None = None,
        cache_bytes: int = 0,
    ) -> None:
        super().__init__(url, taps, join, fields, labels, cache_bytes)
        table = self._store.pooled(self.taps)
        self._places = {row: place for place, row in enumerate(table["row"].to_pylist())}
        self._vectors = {name: _matrix(table[name]) for name in self.taps}

    @property
    def row_bytes(self) -> int:
        """What an item's vectors take in memory."""
        return max(1, sum(4 * vectors.shape[1] for vectors in self._vectors.values()))

    def _maps(self, rows: Sequence[int]) -> Maps:
        places = torch.tensor([self._places[row] for row in rows])
        return {name: vectors[places][:, :, None, None] for name, vectors in self._vectors.items()}


def _matrix(column: pa.ChunkedArray) -> Tensor:
    """Fixed-size lists of C numbers as float32 [n, C]."""
    whole = column.combine_chunks()
    return torch.from_numpy(whole.flatten().to_numpy().copy()).reshape(-1, whole.type.list_size)
