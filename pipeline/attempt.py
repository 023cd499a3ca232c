"""One try at a shard: claim rows, write whole blocks there and nowhere else, commit by a create-only marker.

Until its marker exists, nothing that an attempt wrote can be seen; after it, nothing that others write can touch its
rows. So a worker may die, stall or wake up late at any line of this module.
"""

from __future__ import annotations

import threading
import uuid
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import Executor
from contextlib import AbstractContextManager
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline import arrays, claims, ledger, storage, tables
from pipeline.batches import Assignment, Record, ShardEnd
from pipeline.blocks import Block, BlockAssembler
from pipeline.meter import Meter
from pipeline.records import index_table
from schemas.layout import (
    MARKERS,
    OBJECTS_SCHEMA,
    attempt_path,
    block_path,
    marker_name,
)
from schemas.receipts import ArrayLayout, FileRef, Manifest, Marker


@dataclass(frozen=True)
class Outcome:
    """What became of an attempt."""

    marker: Marker
    committed: bool
    """False when another attempt's marker was first; its rows are as good as ours."""
    bytes_written: int = 0


class Attempt:
    """Writes one assignment's blocks and commits them.

    Args:
        url: of the store.
        manifest: the store's.
        assignment: what is done.
        device: model of the device that computes, for the record.
        hint: an extent that may be free.
        rows_ready: rows that all arrays are known to have; they are grown beyond it when needed.
        pool: bounds the simultaneous requests to the store.
        meter: told of the bytes and seconds that encoding and uploading take.
    """

    def __init__(
        self,
        url: str,
        manifest: Manifest,
        assignment: Assignment,
        *,
        device: str,
        hint: int,
        rows_ready: int,
        pool: Executor,
        meter: Meter | None = None,
    ) -> None:
        self._meter = meter or Meter()
        self.id = uuid.uuid4().hex
        self.bytes_written = 0
        self._url, self._manifest, self._assignment = url, manifest, assignment
        self._fs, self._root = storage.open_fs(url)
        self._device, self._hint, self._rows_ready, self._pool = device, hint, rows_ready, pool
        self._extents: list[int] = []
        self._blocks: list[FileRef] = []
        self._lock = threading.Lock()

    def write(self, block: Block) -> None:
        """Encode, upload and check one block of every array."""
        first_row = self._row(block.number * self._manifest.rows_per_block)
        number = first_row // self._manifest.rows_per_block
        layouts = {(layout.group, layout.tap): layout for layout in self._manifest.arrays}

        def write_one(item: tuple[tuple[str, str], NDArray[np.generic]]) -> None:
            layout = layouts[item[0]]
            with self._encoding():
                data = arrays.encode(layout, self._manifest, item[1])
            if data is not None:
                ref = self._put(block_path(layout.group, layout.tap, number, item[1].ndim), data)
                with self._lock:
                    self._blocks.append(ref)

        for _ in self._pool.map(write_one, block.arrays.items()):
            pass  # consuming the results raises whatever went wrong

    def commit(self, assembler: BlockAssembler, end: ShardEnd) -> Outcome:
        """Store the tables, then the marker. After a return, the outcome of this round is durable and final."""
        records = list(assembler.records)
        for place, record in enumerate(records):
            record.row = self._row(place)
        rows = [record.row for record in records if record.row is not None]
        if end.bad is not None:
            records.append(Record(end.stop, None, end.bad.reason, end.bad.detail))
        folder = attempt_path(self._assignment.shard.id, self.id)
        pooled = assembler.pooled_table(_vectors(self._manifest.arrays), rows, self._assignment.shard.id)
        pooled_ref = None if pooled is None else self._put_table(f"{folder}/pooled.parquet", pooled, 256)
        index = index_table(self._manifest, records, self._assignment, self.id)
        index_ref = self._put_table(f"{folder}/index.parquet", index, 4096)
        blocks = sorted(self._blocks, key=_by_path)
        listing = pa.Table.from_pylist([ref.model_dump() for ref in blocks], OBJECTS_SCHEMA)
        marker = Marker(
            identity=self._manifest.fingerprint,
            shard=self._assignment.shard.id,
            size=self._assignment.shard.size,
            version=self._assignment.shard.version,
            round=self._assignment.round,
            attempt=self.id,
            stop=end.stop,
            complete=end.complete,
            extents=self._extents,
            rows=len(rows),
            counts=dict(Counter(record.outcome for record in records)),
            index=index_ref,
            objects=self._put_table(f"{folder}/objects.parquet", listing, 4096),
            pooled=pooled_ref,
            device=self._device,
        )
        return self._create(marker)

    def _create(self, marker: Marker) -> Outcome:
        path = f"{self._root}/{MARKERS}/{marker_name(marker.shard, marker.round)}"
        if storage.create(self._fs, path, marker.to_bytes()):
            return Outcome(marker, True, self.bytes_written)
        first = ledger.parse(path, self._fs.cat_file(path))
        return Outcome(first, first.attempt == self.id, self.bytes_written)

    def _row(self, place: int) -> int:
        """The row in the arrays of the attempt's `place`-th row; claims the extents that are still missing."""
        number, offset = divmod(place, self._manifest.rows_per_extent)
        while number >= len(self._extents):
            hint = self._extents[-1] + 1 if self._extents else self._hint
            shard, round_ = self._assignment.shard.id, self._assignment.round
            extent = claims.claim(self._fs, self._root, hint, shard=shard, round_=round_, attempt=self.id)
            self._extents.append(extent)
            rows = (extent + 1) * self._manifest.rows_per_extent
            if self._manifest.identity["output"]["maps"] and rows > self._rows_ready:
                arrays.ensure_rows(self._url, self._manifest, rows)
        return self._extents[number] * self._manifest.rows_per_extent + offset

    def _encoding(self) -> AbstractContextManager[None]:
        return self._meter.stage("encode", self._assignment.shard.id)

    def _put_table(self, path: str, table: pa.Table, row_group_size: int) -> FileRef:
        with self._encoding():
            data = tables.to_parquet(table, row_group_size)
        return self._put(path, data)

    def _put(self, path: str, data: bytes) -> FileRef:
        with self._meter.stage("upload", self._assignment.shard.id):
            ref = tables.put(self._fs, self._root, path, data)
        self._meter.add("bytes_written", ref.size)
        with self._lock:
            self.bytes_written += ref.size
        return ref


def _vectors(layouts: Sequence[ArrayLayout]) -> dict[tuple[str, str], int]:
    return {(layout.group, layout.tap): layout.shape[0] for layout in layouts}


def _by_path(ref: FileRef) -> str:
    return ref.path
