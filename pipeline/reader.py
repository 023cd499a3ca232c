"""Reading what was stored: committed rows only, and only the taps asked for."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
from numpy.typing import NDArray

from pipeline import ledger, storage
from pipeline.index import Where, read_index
from pipeline.rows import RowReader
from pipeline.store import read_manifest
from schemas.receipts import ArrayLayout, FileRef, Manifest

_READERS = 32


class FeatureStore:
    """A store as its readers see it: what was committed when it was opened.

        store = FeatureStore("s3://bucket/features")
        rows = store.index.filter(pc.field("status") == "ok")["row"].to_numpy()
        maps = store.read(rows[:8], ["plain/up-level1-upsampler-out"])

    Safe to pickle and to use in processes started by fork: file systems are opened where they are first used.

    Raises:
        StoreError: nothing there, or a store of another schema version.
    """

    def __init__(self, url: str) -> None:
        self.url = url
        self.manifest: Manifest = read_manifest(url)
        self._rows = RowReader(url, self.manifest)

    @functools.cached_property
    def ledger(self) -> ledger.Ledger:
        """The markers of what is committed."""
        return ledger.read_ledger(self.url)

    @functools.cached_property
    def index(self) -> pa.Table:
        """One record a sample, its newest outcome; columns are those of `schemas.layout.index_schema`.

        All of it is in memory, some 300 bytes a row: for many millions of rows, use `good` with the columns you need.
        """
        return read_index(self.url, self.manifest, self.ledger)

    @property
    def taps(self) -> dict[str, ArrayLayout]:
        """What is stored, by `group/tap`: shapes of a row and dtypes."""
        return {f"{array.group}/{array.tap}": array for array in self.manifest.arrays}

    def good(self, groups: Sequence[str] | None = None, columns: Sequence[str] | None = None) -> pa.Table:
        """The index's records of rows that are good in some groups (default: in all), by shard and position.

        Args:
            groups: of the store.
            columns: of the index; others are not read.

        Raises:
            KeyError: a group that is not stored.
        """
        good = pc.field("row").is_valid()
        for group in self.manifest.groups if groups is None else groups:
            if group not in self.manifest.groups:
                raise KeyError(
                    f"store {self.url} has no group {group!r}, only {', '.join(self.manifest.groups)}"
                )
            good &= pc.field("groups", group, "status") == "ok"
        if "index" in vars(self):  # all of it is in memory already
            found = self.index.filter(good)
            return (found if columns is None else found.select(columns)).combine_chunks()
        return read_index(self.url, self.manifest, self.ledger, columns, Where(["row", "groups"], good))

    def rows(self, group: str | None = None) -> NDArray[np.int64]:
        """Rows that are good, in all groups or in one, in the order of shard and position."""
        good = self.good(None if group is None else [group], ["row"])
        rows: NDArray[np.int64] = good["row"].to_numpy()
        return rows

    def read(self, rows: Sequence[int] | NDArray[np.int64], taps: Sequence[str]) -> dict[str, NDArray[Any]]:
        """Feature maps of some rows, in the order asked for.

        Args:
            rows: numbers from the index's column `row`.
            taps: names as in `taps`.

        Returns:
            {name: [len(rows), C, h, w]}; NaN where a group of a row failed.

        Raises:
            KeyError: a tap that is not stored.
            IndexError: a row that is not committed, or that a later round did again.
            ValueError: the store has pooled vectors only.
        """
        if not self.manifest.identity["output"]["maps"]:
            raise ValueError(f"store {self.url} holds no maps (output.maps was false); use `pooled`")
        wanted = np.asarray(rows, np.int64)
        self._check_rows(wanted)
        return dict(zip(taps, self._rows.read([self.layout(name) for name in taps], wanted), strict=True))

    def pooled(self, taps: Sequence[str]) -> pa.Table:
        """Pooled vectors of all rows that are good in the groups of `taps`, in the order of shard and position.

        Returns:
            `row`, and per tap a fixed-size list of float32 [C].

        Raises:
            KeyError: a tap that is not stored.
            ValueError: the store has no pooled vectors.
        """
        if not self.manifest.identity["output"]["pooled"]:
            raise ValueError(
                f"store {self.url} holds no pooled vectors (output.pooled was false); use `read`"
            )
        rows = self.good(list(dict.fromkeys(self.layout(name).group for name in taps)), ["row"])["row"]
        schema = pa.schema([("row", pa.int64()), *((name, pa.binary()) for name in taps)])
        refs = [marker.pooled for marker in self.ledger.markers if marker.pooled is not None]
        with ThreadPoolExecutor(_READERS) as pool:
            tables = list(pool.map(lambda ref: self._columns(ref, schema.names), refs))
        table = pa.concat_tables([table.cast(schema) for table in tables] or [schema.empty_table()])
        table = table.take(pc.index_in(rows, value_set=table["row"].combine_chunks())).combine_chunks()
        columns = {"row": table["row"]}
        for name in taps:
            values = pa.array(np.frombuffer(b"".join(table[name].to_pylist()), "<f4"))
            columns[name] = pa.FixedSizeListArray.from_arrays(values, self.layout(name).shape[0])
        return pa.table(columns)

    def _columns(self, ref: FileRef, columns: list[str]) -> pa.Table:
        fs, root = storage.open_fs(self.url)
        with fs.open(f"{root}/{ref.path}", "rb") as file:
            return pq.read_table(file, columns=columns).select(columns)

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        places = np.searchsorted(self._committed, rows)
        known = np.zeros(len(rows), bool)
        inside = places < len(self._committed)
        known[inside] = self._committed[places[inside]] == rows[inside]
        if not known.all():
            raise IndexError(
                f"store {self.url}: row {rows[~known][0]} is not committed; take rows from the index's column 'row'"
            )

    @functools.cached_property
    def _committed(self) -> NDArray[np.int64]:
        """Sorted."""
        return np.sort(self.good([], ["row"])["row"].to_numpy())

    def layout(self, name: str) -> ArrayLayout:
        """What is stored under a name.

        Raises:
            KeyError: no such tap; names the nearest.
        """
        if name not in self.taps:
            near = difflib.get_close_matches(name, self.taps, n=3, cutoff=0.3) or list(self.taps)[:3]
            raise KeyError(
                f"store {self.url} has no {name!r}; nearest of {len(self.taps)}: {', '.join(near)}"
            )
        return self.taps[name]
