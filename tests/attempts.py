"""Attempts with features made from nothing but a number, for tests of the commit protocol without a backbone."""

from __future__ import annotations

from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace

import numpy as np

from pipeline import arrays, storage
from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Assignment, Record, ShardEnd
from pipeline.blocks import BlockAssembler
from pipeline.features import Features
from pipeline.shards import BadShard, Shard
from schemas.receipts import ArrayLayout, Manifest

SHAPE = [2, 3, 4]
POOL = ThreadPoolExecutor(4)


def manifest(rows_per_block: int = 4, blocks_per_extent: int = 2) -> Manifest:
    """Of a store with two groups of one small tap each."""
    names = ("plain", "fine")
    return Manifest(
        gatehouse="0",
        identity={
            "groups": [{"name": name} for name in names],
            "output": {"compression_level": 3, "maps": True, "pooled": True},
        },
        arrays=[ArrayLayout(group=name, tap="tap", shape=SHAPE, dtype="float16") for name in names],
        rows_per_block=rows_per_block,
        rows_per_extent=rows_per_block * blocks_per_extent,
        spec={},
        libraries={},
    )


def make_store(url: str, made_of: Manifest) -> None:
    """Manifest and empty arrays."""
    fs, root = storage.open_fs(url)
    assert storage.create(fs, f"{root}/manifest.json", made_of.to_bytes())
    arrays.create_arrays(url, made_of)


def shard(name: str = "a.tar") -> Shard:
    return Shard(name, f"/nowhere/{name}", 1000, "v1")


def value(key: str) -> float:
    """What every feature of a sample holds."""
    return float(sum(key.encode()) % 512)


class Draft:
    """An attempt in the making, to be interrupted wherever a test likes."""

    def __init__(self, url: str, made_of: Manifest, assignment: Assignment, hint: int = 0) -> None:
        self.assignment = assignment
        self.attempt = Attempt(url, made_of, assignment, device="test", hint=hint, rows_ready=0, pool=POOL)
        self.assembler = BlockAssembler(made_of.arrays, made_of.rows_per_block, pooled=True)

    def write(self, keys: list[str], bad: dict[str, str] | None = None) -> None:
        """Rows for these keys, those in `bad` with a reason; whole blocks are uploaded."""
        records: list[Record | None] = []
        for place, key in enumerate(keys):
            position = len(self.assembler.records) + place + (self.assignment.start or 0)
            records.append(Record(position, key, (bad or {}).get(key), caption=f"caption of {key}"))
        for block in self.assembler.add(records, _features(keys) if keys else None):
            self.attempt.write(block)

    def commit(self, *, complete: bool = True, bad: BadShard | None = None) -> Outcome:
        for block in self.assembler.flush():
            self.attempt.write(block)
        stop = (self.assignment.start or 0) + len(self.assembler.records)
        return self.attempt.commit(self.assembler, ShardEnd(stop, complete, bad))


def store_shard(
    url: str, made_of: Manifest, assignment: Assignment, keys: list[str], bad: dict[str, str] | None = None
) -> Outcome:
    """A whole attempt."""
    draft = Draft(url, made_of, assignment)
    draft.write(keys, bad)
    return draft.commit()


def again(assignment: Assignment, round_: int, **changes: object) -> Assignment:
    return replace(assignment, round=round_, **changes)  # type: ignore[arg-type]


def _features(keys: list[str]) -> Features:
    maps = np.stack([np.full(SHAPE, value(key), np.float16) for key in keys])
    pooled = np.stack([np.full(SHAPE[0], value(key), np.float32) for key in keys])
    names = ("plain", "fine")
    return Features(
        {(name, "tap"): maps for name in names},
        {(name, "tap"): pooled for name in names},
        {name: [None] * len(keys) for name in names},
    )
