"""A spec to a plan: everything that can be known, refused or estimated before work starts."""

from __future__ import annotations

import functools
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pipeline import checkpoint, families, sources, taps
from pipeline.backbone import Backbone
from pipeline.captions import Captions
from pipeline.features import attn_sources, tiling_of, windows
from pipeline.identity import identity, libraries
from pipeline.shards import Shard, count_samples, list_shards
from pipeline.tiles import places
from schemas import __version__
from schemas import taps as tap_names
from schemas.receipts import ArrayLayout, Manifest
from schemas.spec import Dtype, ExtractSpec, Group

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
    arrays = layouts(spec, folder)
    shards = list_shards(spec.input)
    if spec.input.captions is not None:
        Captions(spec.input.captions).check(shards)
    counted = _count_rows(shards, spec)
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
    rows = _estimate_rows(shards, counted)
    return Plan(spec, manifest, shards, rows, rows_exact=len(counted) == len(shards))


def layouts(spec: ExtractSpec, folder: Path) -> list[ArrayLayout]:
    """One array a (group, tap), with the shapes that the network gives images of the spec's size.

    Raises:
        ValueError: a tap that the network does not have, with the group's name and the nearest tap that exists; a tap
            that a group's prompt, the tiles or the memory rule out.
    """
    family = families.family(folder)
    config = checkpoint.config(folder, family.network_part)
    if wrong := [f"{'.'.join(map(str, path))}: {message}" for path, message in _wrong_taps(spec, config)]:
        raise ValueError("\n".join(wrong))
    found = []
    for group in spec.expanded_groups:
        wanted = _taps(group, config)
        _check_attention(group, list(wanted), spec)
        shapes = _shapes(spec, folder, family, group, list(wanted))
        for tap, shape in shapes.items():
            _check_map_size(tap, shape, spec.backbone.batch_size)
        found += [
            ArrayLayout(group=group.name, tap=tap, shape=list(shapes[tap]), dtype=dtype or spec.output.dtype)
            for tap, dtype in wanted.items()
        ]
    if spec.tiles is not None:
        places(*tiling_of(spec, found, family.latent_shape(folder, spec.image_size)))
    return found


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
    folder = sources.locate(spec.backbone)
    return _wrong_taps(spec, checkpoint.config(folder, families.family(folder).network_part))


def _wrong_taps(spec: ExtractSpec, config: dict[str, Any]) -> list[tuple[tuple[str | int, ...], str]]:
    wrong: list[tuple[tuple[str | int, ...], str]] = []
    for number, group in enumerate(spec.groups):
        where = ("groups", number, "taps")
        for place, tap in enumerate([group.taps] if isinstance(group.taps, str) else group.taps):
            name = tap if isinstance(tap, str) else tap.name
            try:
                tap_names.resolve([name], config)
                if name == "attn":
                    attn_sources(group, config)
            except ValueError as error:
                wrong.append((where if isinstance(group.taps, str) else (*where, place), str(error)))
    return wrong


def _taps(group: Group, config: dict[str, Any]) -> dict[str, Dtype | None]:
    """Tap names of a group in the network's order, with the dtype each asks for."""
    asked: dict[str, Dtype | None] = {}
    for tap in [group.taps] if isinstance(group.taps, str) else group.taps:
        name, dtype = (tap, None) if isinstance(tap, str) else (tap.name, tap.dtype)
        for one in tap_names.resolve([name], config):
            # A tap that is named beside its set keeps the dtype it asks for.
            asked[one] = dtype or asked.get(one)
    return {name: asked[name] for name in tap_names.resolve(list(asked), config)}


def _check_attention(group: Group, taps: Sequence[str], spec: ExtractSpec) -> None:
    """What channels of attention features mean must be the same for every image, and be one picture."""
    for tap in taps:
        by_token = tap == "attn" or tap.endswith("-cross-map")
        if by_token and group.varies and not group.per_image_attention:
            raise ValueError(
                f"group {group.name!r}: the channels of {tap!r} are the prompt's tokens, and its prompt differs by"
                " image; give a fixed prompt, or per_image_attention: true if that is what you want"
            )
        if spec.tiles is not None and tap_names.kind(tap) == "attention":
            raise ValueError(
                f"group {group.name!r}: {tap!r} relates the places of one pass, which tiles cut apart; leave out the"
                " tap or the tiles"
            )


def _shapes(
    spec: ExtractSpec, folder: Path, family: type[Backbone], group: Group, wanted: Sequence[str]
) -> dict[str, tuple[int, ...]]:
    """Shapes of a group's taps for one whole picture, without batch axis."""
    size = spec.image_size if spec.tiles is None else spec.tiles.size
    channels, height, width = family.latent_shape(folder, size)
    family.latent_shape(folder, spec.image_size)
    tokens = family.text_tokens(folder, windows(group, family, folder))
    config = checkpoint.config(folder, family.network_part)
    sites = [tap for tap in wanted if tap != "attn"]
    if "attn" in wanted:
        sites += attn_sources(group, config)
    shapes = _meta_shapes(folder, family, tuple(dict.fromkeys(sites)), (channels, height, width), tokens)
    found = {tap: shapes[tap] for tap in wanted if tap != "attn"}
    if "attn" in wanted:
        found["attn"] = _attn_shape(group, shapes, attn_sources(group, config), (height, width), tokens)
    if spec.tiles is not None:
        found = {tap: _untiled(shape, spec, size) for tap, shape in found.items()}
    return found


@functools.lru_cache
def _meta_shapes(
    folder: Path, family: type[Backbone], sites: tuple[str, ...], latents: tuple[int, int, int], tokens: int
) -> dict[str, tuple[int, ...]]:
    """Kept, since groups often have the same taps, and building a network for their shapes takes a second."""

    def inputs(network: Any) -> dict[str, Any]:
        noisy = torch.zeros(1, *latents)
        return family.inputs(network, noisy, torch.zeros(()), family.blank_text(folder, tokens))

    config = checkpoint.config(folder, family.network_part)
    return taps.shapes(family.network_class, config, sites, inputs)


def _attn_shape(
    group: Group,
    shapes: dict[str, tuple[int, ...]],
    sites: Sequence[str],
    latents: tuple[int, int],
    tokens: int,
) -> tuple[int, int, int]:
    chosen = group.asked("attn").tokens
    if chosen and max(chosen) >= tokens:
        raise ValueError(
            f"group {group.name!r}: attn.tokens has {max(chosen)}, and the prompt's encoding ends at {tokens - 1}"
        )
    resolutions = len({shapes[site][1] for site in sites})
    return (resolutions * (tokens if chosen is None else len(chosen)), *latents)


def _untiled(shape: tuple[int, ...], spec: ExtractSpec, tile: Sequence[int]) -> tuple[int, ...]:
    """The whole picture's map, from a tile's."""
    channels, *cells = shape
    return (
        channels,
        *(whole * count // side for whole, count, side in zip(spec.image_size, cells, tile, strict=True)),
    )


def _check_map_size(tap: str, shape: tuple[int, ...], batch_size: int) -> None:
    size = 4 * math.prod(shape) * batch_size
    if tap_names.kind(tap) == "attention" and size > taps.MAX_MAP_BYTES:
        raise ValueError(
            f"tap {tap!r}: an attention map {list(shape)} takes {size / 2**30:.1f} GiB at batch size {batch_size},"
            f" {taps.MAX_MAP_BYTES / 2**30:.0f} GiB is the most; use a smaller batch, a tap of lower resolution or, of"
            " a self-map, its pooled form (gatehouse taps lists them)"
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
