"""A spec to a plan: everything that can be known, refused or estimated before work starts."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from pipeline import backbone, checkpoint, taps
from pipeline.identity import identity, libraries
from pipeline.shards import Shard, count_samples, list_shards
from schemas import __version__
from schemas import taps as tap_names
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import ExtractSpec, Group

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
    """Resolve backbone, taps, timesteps and shards of a spec.

    Raises:
        ValueError: whatever is wrong with them; nothing has been written.
    """
    folder = checkpoint.locate(spec.backbone)
    shards = list_shards(spec.input)
    arrays = layouts(spec, folder)
    timesteps = {g.name: backbone.resolve_timestep(folder, g.t, g.timestep) for g in spec.groups}
    counted = _count_rows(shards, spec)
    per_block, per_extent = block_rows(arrays, max(counted), spec.output.block_bytes)
    manifest = Manifest(
        gatehouse=__version__,
        identity=identity(spec, folder, timesteps, arrays),
        arrays=arrays,
        rows_per_block=per_block,
        rows_per_extent=per_extent,
        spec=spec.model_dump(mode="json"),
        timesteps=timesteps,
        libraries=libraries(),
    )
    rows = _estimate_rows(shards, counted)
    return Plan(spec, manifest, shards, rows, rows_exact=len(counted) == len(shards))


def layouts(spec: ExtractSpec, folder: Path) -> list[ArrayLayout]:
    """One array a (group, tap), with the shapes that the network gives images of the spec's size.

    Raises:
        ValueError: a tap that the network does not have; names the group, and the nearest tap that exists.
    """
    unet = checkpoint.config(folder, "unet")
    if wrong := [f"{'.'.join(map(str, path))}: {message}" for path, message in _wrong_taps(spec, unet)]:
        raise ValueError("\n".join(wrong))
    wanted = {group.name: _taps(group, unet) for group in spec.groups}
    size = backbone.latent_size(folder, spec.image_size)
    union = tap_names.resolve([tap for group in wanted.values() for tap in group], unet)
    shapes = taps.shapes(unet, union, size, backbone.text_length(folder))
    for tap, shape in shapes.items():
        _check_map_size(tap, shape, spec.backbone.batch_size)
    return [
        ArrayLayout(group=group, tap=tap, shape=list(shapes[tap]), dtype=dtype or spec.output.dtype)
        for group, names in wanted.items()
        for tap, dtype in names.items()
    ]


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


def wrong_taps(spec: ExtractSpec) -> list[tuple[tuple[str | int, ...], str]]:
    """Taps that the backbone does not have, each with its path in the spec: a `check` for `schemas.specfile.load`."""
    return _wrong_taps(spec, checkpoint.config(checkpoint.locate(spec.backbone), "unet"))


def _wrong_taps(spec: ExtractSpec, unet: dict[str, object]) -> list[tuple[tuple[str | int, ...], str]]:
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    for number, group in enumerate(spec.groups):
        where = ("groups", number, "taps")
        for place, tap in enumerate([group.taps] if isinstance(group.taps, str) else group.taps):
            try:
                tap_names.resolve([tap if isinstance(tap, str) else tap.name], unet)
            except ValueError as error:
                wrong.append((where if isinstance(group.taps, str) else (*where, place), str(error)))
    return wrong


def _taps(group: Group, unet: dict[str, object]) -> dict[str, str | None]:
    """Tap names of a group in the network's order, with the dtype each asks for."""
    asked: dict[str, str | None] = {}
    for tap in [group.taps] if isinstance(group.taps, str) else group.taps:
        name, dtype = (tap, None) if isinstance(tap, str) else (tap.name, tap.dtype)
        for one in tap_names.resolve([name], unet):
            # A tap that is named beside its set keeps the dtype it asks for.
            asked[one] = dtype or asked.get(one)
    return {name: asked[name] for name in tap_names.resolve(list(asked), unet)}


def _check_map_size(tap: str, shape: tuple[int, ...], batch_size: int) -> None:
    size = 4 * math.prod(shape) * batch_size
    if tap_names.kind(tap) == "attention" and size > taps.MAX_MAP_BYTES:
        raise ValueError(
            f"tap {tap!r}: an attention map {list(shape)} takes {size / 2**30:.1f} GiB at batch size {batch_size},"
            f" {taps.MAX_MAP_BYTES / 2**30:.0f} GiB is the most; use a smaller batch or a tap of lower resolution"
        )


def _count_rows(shards: Sequence[Shard], spec: ExtractSpec) -> list[int]:
    """Samples of the first few shards; at least one each, since what is wrong with a tar is said when it is read."""
    counted: list[int] = []
    size = 0
    for shard in shards[:_COUNTED_SHARDS]:
        counted.append(max(1, count_samples(shard, spec.input)))
        size += shard.size
        if size > _COUNTED_BYTES:
            break
    return counted


def _estimate_rows(shards: Sequence[Shard], counted: Sequence[int]) -> int:
    known = sum(shard.size for shard in shards[: len(counted)])
    rest = sum(shard.size for shard in shards[len(counted) :])
    return sum(counted) + round(rest * sum(counted) / max(1, known))
