"""Rows of features, batch by batch, into whole blocks: what one output shard of every array will hold."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import pyarrow as pa
from numpy.typing import NDArray

from pipeline.batches import Record
from pipeline.features import Features, GroupTap
from schemas.layout import pooled_schema
from schemas.receipts import ArrayLayout


@dataclass
class Block:
    """`number` counts the attempt's blocks from 0; rows that hold nothing are NaN."""

    number: int
    arrays: dict[GroupTap, NDArray[np.generic]]
    """[rows_per_block, C, h, w] each."""


class BlockAssembler:
    """Gives every record of an attempt a row, in the order of the shard, and fills blocks with the features.

    Args:
        arrays: what is stored as maps; empty when only pooled vectors are.
        rows_per_block: rows of a block, in every array.
        pooled: whether to keep pooled vectors.
    """

    def __init__(self, arrays: Sequence[ArrayLayout], rows_per_block: int, *, pooled: bool) -> None:
        self.records: list[Record] = []
        self._arrays = list(arrays)
        self._rows_per_block = rows_per_block
        self._block: Block | None = None
        self._pooled: dict[GroupTap, list[bytes | None]] | None = {} if pooled else None

    def add(self, records: Sequence[Record | None], features: Features | None) -> Iterator[Block]:
        """Take a batch's records and features (None when all its samples are bad); yield the blocks it fills."""
        for slot, record in enumerate(records):
            if record is None:
                continue
            row = len(self.records)
            record.row = row
            if record.reason is None:
                assert features is not None
                record.groups = {group: reasons[slot] for group, reasons in features.reasons.items()}
                record.scores = {
                    group: float(scores[slot])
                    for group, scores in features.scores.items()
                    if record.groups[group] is None
                }
            self.records.append(record)
            self._keep_pooled(slot, record, features)
            if self._arrays:
                self._keep_maps(slot, record, features)
                if (row + 1) % self._rows_per_block == 0:
                    yield from self.flush()

    def flush(self) -> Iterator[Block]:
        """The last block, if it holds any row."""
        if self._block is not None:
            yield self._block
            self._block = None

    def pooled_table(self, vectors: dict[GroupTap, int], rows: Sequence[int], shard: str) -> pa.Table | None:
        """The pooled vectors of all records; `rows` are their rows in the store. None when none are kept."""
        if self._pooled is None:
            return None
        columns = [
            pa.array(rows, pa.int64()),
            pa.array([shard] * len(self.records)),
            pa.array([record.key for record in self.records], pa.string()),
            *(pa.array(self._padded(self._pooled.get(vector, [])), pa.binary()) for vector in vectors),
        ]
        return pa.Table.from_arrays(columns, schema=pooled_schema(vectors))

    def _keep_maps(self, slot: int, record: Record, features: Features | None) -> None:
        assert record.row is not None
        number, place = divmod(record.row, self._rows_per_block)
        if self._block is None:
            shape = self._rows_per_block
            empty = {
                (array.group, array.tap): np.full((shape, *array.shape), np.nan, array.dtype)
                for array in self._arrays
            }
            self._block = Block(number, empty)
        for group_tap, block in self._block.arrays.items():
            if features is not None and _stored(record, group_tap):
                block[place] = features.maps[group_tap][slot]

    def _keep_pooled(self, slot: int, record: Record, features: Features | None) -> None:
        if self._pooled is None or features is None:
            return
        for group_tap, vectors in features.pooled.items():
            column = self._pooled.setdefault(group_tap, [])
            column.extend(
                [None] * (len(self.records) - 1 - len(column))
            )  # batches in which every sample was bad
            column.append(vectors[slot].astype("<f4").tobytes() if _stored(record, group_tap) else None)

    def _padded(self, column: list[bytes | None]) -> list[bytes | None]:
        return [*column, *[None] * (len(self.records) - len(column))]


def _stored(record: Record, group_tap: GroupTap) -> bool:
    return record.reason is None and record.groups[group_tap[0]] is None
