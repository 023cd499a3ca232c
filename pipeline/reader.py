"""Reading what was stored: committed rows only, and only the taps asked for."""

from __future__ import annotations

import difflib
import functools
from collections.abc import Sequence
from typing import Any

import numpy as np
import pyarrow as pa
import pyarrow.compute as pc
import pyarrow.parquet as pq
import zarr
from numpy.typing import NDArray

from pipeline import arrays, ledger, storage
from pipeline.store import read_manifest
from schemas.layout import index_schema
from schemas.receipts import ArrayLayout, Manifest


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

    @functools.cached_property
    def ledger(self) -> ledger.Ledger:
        """The markers of what is committed."""
        return ledger.read_ledger(self.url)

    @functools.cached_property
    def index(self) -> pa.Table:
        """One record a sample, its newest outcome; columns are those of `schemas.layout.index_schema`."""
        return ledger.read_index(self.url, self.manifest, self.ledger)

    @property
    def taps(self) -> dict[str, ArrayLayout]:
        """What is stored, by `group/tap`: shapes of a row and dtypes."""
        return {f"{array.group}/{array.tap}": array for array in self.manifest.arrays}

    def rows(self, group: str | None = None) -> NDArray[np.int64]:
        """Rows that are good, in all groups or in one, in the order of shard and position."""
        if group is None:
            good = pc.equal(self.index["status"], "ok")
        else:
            good = pc.equal(pc.struct_field(self.index["groups"], [group, "status"]), "ok")
        rows: NDArray[np.int64] = self.index.filter(pc.and_(good, pc.is_valid(self.index["row"])))["row"].to_numpy()
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
            IndexError: a row that is not committed.
        """
        wanted = np.asarray(rows, np.int64)
        self._check_rows(wanted)
        return {name: self._array(name).get_orthogonal_selection((wanted,)) for name in taps}

    def pooled(self, taps: Sequence[str]) -> pa.Table:
        """Pooled vectors of all good rows: `row`, and one fixed-size list of float32 a tap."""
        fs, root = storage.open_fs(self.url)
        for name in taps:
            self.layout(name)
        good = pa.array(self.rows())
        tables = []
        for marker in self.ledger.markers:
            if marker.pooled is not None:
                with fs.open(f"{root}/{marker.pooled.path}", "rb") as file:
                    table = pq.read_table(file, columns=["row", *taps])
                tables.append(table.filter(pc.is_in(table["row"], good)))
        columns: dict[str, pa.Array] = {}
        if not tables:
            return index_schema([]).empty_table().select(["row"])
        table = pa.concat_tables(tables).combine_chunks()
        for name in taps:
            values = np.frombuffer(b"".join(table[name].to_pylist()), "<f4")
            columns[name] = pa.FixedSizeListArray.from_arrays(pa.array(values), self.layout(name).shape[0])
        return pa.table({"row": table["row"], **columns})

    def _check_rows(self, rows: NDArray[np.int64]) -> None:
        known = np.isin(rows, self._committed)
        if not known.all():
            raise IndexError(
                f"store {self.url}: row {rows[~known][0]} is not committed; take rows from the index's column 'row'"
            )

    @functools.cached_property
    def _committed(self) -> NDArray[np.int64]:
        return self.index["row"].drop_null().to_numpy()  # type: ignore[no-any-return]

    def layout(self, name: str) -> ArrayLayout:
        """What is stored under a name.

        Raises:
            KeyError: no such tap; names the nearest.
        """
        if name not in self.taps:
            near = difflib.get_close_matches(name, self.taps, n=3, cutoff=0.3) or list(self.taps)[:3]
            raise KeyError(f"store {self.url} has no {name!r}; nearest of {len(self.taps)}: {', '.join(near)}")
        return self.taps[name]

    def _array(self, name: str) -> zarr.Array[Any]:
        layout = self.layout(name)
        if name not in self._arrays:
            root = zarr.open_group(arrays.open_zarr(self.url, read_only=True), mode="r", zarr_format=3)
            self._arrays[name] = arrays.open_array(root, layout, int(self._committed.max(initial=-1)) + 1)
        return self._arrays[name]

    @functools.cached_property
    def _arrays(self) -> dict[str, zarr.Array[Any]]:
        return {}

    def __getstate__(self) -> dict[str, Any]:
        return {key: value for key, value in self.__dict__.items() if key != "_arrays"}
