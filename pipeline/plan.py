"""A spec to a plan: everything that can be known, refused or estimated before work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

from pipeline import sources
from pipeline.captions import Captions
from pipeline.identity import check_selection, identity
from pipeline.layouts import layouts
from pipeline.libraries import libraries
from pipeline.shards import Shard, count_samples, list_shards
from schemas import __version__
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import ExtractSpec

_BATCHES_HELD = 8  # decoded ahead, and on their way
_COUNTED_SHARDS = 8
_COUNTED_BYTES = 256 * 2**20  # what is counted elsewhere than on local disk is read whole


@dataclass(frozen=True)
class Plan:
    """What a job will do."""

    spec: ExtractSpec
    manifest: Manifest
    """Of a new store; a store that exists keeps its own, which must have the same identity."""
    shards: list[Shard]
    rows: int
    rows_exact: bool
    """False when the rows of some shards were estimated from their sizes."""

    @property
    def row_bytes(self) -> int:
        """Uncompressed bytes a row, over all arrays."""
        return sum(array.row_bytes for array in self.manifest.arrays)


def make_plan(spec: ExtractSpec) -> Plan:
    """Resolve backbone, taps, techniques, timesteps and shards of a spec.

    Raises:
        ValueError: whatever is wrong with them; nothing has been written.
    """
    folder = sources.locate(spec.backbone)
    check_selection(spec, folder)
    arrays = layouts(spec, folder)
    shards = list_shards(spec.input)
    if spec.input.captions is not None:
        Captions(spec.input.captions).check(shards)
    counted = count_rows(shards, spec)
    per_block, per_extent = block_rows(arrays, max(counted), spec.output.block_bytes)
    manifest = Manifest(
        gatehouse=__version__,
        identity=identity(spec, folder, arrays),
        arrays=arrays,
        rows_per_block=per_block,
        rows_per_extent=per_extent,
        spec=spec.model_dump(mode="json"),
        libraries=libraries(),
    )
    rows = estimate_rows(shards, counted)
    return Plan(spec, manifest, shards, rows, rows_exact=len(counted) == len(shards))


def block_rows(arrays: Sequence[ArrayLayout], shard_rows: int, block_bytes: int) -> tuple[int, int]:
    """Rows of a block and of an extent.

    A block is what fits the byte budget, or one row; balanced, so that a shard of `shard_rows` samples, which
    should be a typical one, fills its last block too. An extent is the blocks of such a shard, so that most attempts
    claim once.
    """
    row_bytes = sum(array.row_bytes for array in arrays)
    budget = max(1, block_bytes // row_bytes)
    blocks = math.ceil(shard_rows / budget)
    per_block = math.ceil(shard_rows / blocks)
    return per_block, per_block * blocks


def held_bytes(spec: ExtractSpec, rows_per_block: int, row_bytes: int) -> int:
    """Main memory of an actor's queues: three blocks, and batches of decoded pixels."""
    height, width = spec.image_size
    batches = _BATCHES_HELD * spec.backbone.batch_size * 3 * height * width
    return 3 * rows_per_block * row_bytes + batches


def count_rows(shards: Sequence[Shard], spec: ExtractSpec) -> list[int]:
    """Samples of the first few shards; at least one each, since what is wrong with a tar is said when it is read."""
    counted: list[int] = []
    size = 0
    for shard in shards[:_COUNTED_SHARDS]:
        counted.append(max(1, count_samples(shard, spec.input)))
        size += shard.size
        if size > _COUNTED_BYTES:
            break
    return counted


def estimate_rows(shards: Sequence[Shard], counted: Sequence[int]) -> int:
    """Rows of all shards, from the samples of the first few and the sizes of the rest."""
    known = sum(shard.size for shard in shards[: len(counted)])
    rest = sum(shard.size for shard in shards[len(counted) :])
    return sum(counted) + round(rest * sum(counted) / max(1, known))
