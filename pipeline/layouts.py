"""Which arrays a spec stores: its taps by name, checked, with the shapes that the network gives them."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pipeline import attn, checkpoint, families, maps, sources, taps
from pipeline.backbone import Backbone
from pipeline.recipes import attn_sources, tiling_of, windows
from pipeline.tiles import places
from schemas import taps as tap_names
from schemas.groups import Group
from schemas.model import Dtype
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec


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
            if (how := tap_names.as_map(tap)) is not None:
                heads, queries, keys = shape
                size = (spec.backbone.batch_size, heads, queries, keys)
                maps.check_size(how, size, taps.MAX_MAP_BYTES)
        found += [
            ArrayLayout(group=group.name, tap=tap, shape=list(shapes[tap]), dtype=dtype or spec.output.dtype)
            for tap, dtype in wanted.items()
        ]
    if spec.tiles is not None:
        places(*tiling_of(spec, found, family.latent_shape(folder, spec.image_size)))
    return found


def wrong_taps(spec: ExtractSpec) -> list[tuple[tuple[str | int, ...], str]]:
    """Taps that the backbone does not have, each with its path in the spec: a `check` for `schemas.specfile.load`."""
    folder = sources.configs(spec.backbone)  # the check that follows asks for weights
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
        if tap_names.by_token(tap) and group.varies and not group.per_image_attention:
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
    averaged = attn_sources(group, config) if "attn" in wanted else []
    sites += averaged
    shapes = _meta_shapes(folder, family, tuple(dict.fromkeys(sites)), (channels, height, width), tokens)
    found = {tap: shapes[tap] for tap in wanted if tap != "attn"}
    if "attn" in wanted:
        _check_tokens(group, tokens)
        chosen = group.asked("attn").tokens
        count = None if chosen is None else len(chosen)
        found["attn"] = attn.shape([shapes[one] for one in averaged], (height, width), count)
    if spec.tiles is not None:
        found = {tap: _untiled(shape, spec, size) for tap, shape in found.items()}
    return found


@functools.lru_cache
def _meta_shapes(
    folder: Path, family: type[Backbone], sites: tuple[str, ...], latents: tuple[int, int, int], tokens: int
) -> dict[str, tuple[int, ...]]:
    """Kept, since groups often have the same taps, and building a network for their shapes takes a second."""
    config = checkpoint.config(folder, family.network_part)
    return taps.shapes(
        family.network_class,
        config,
        sites,
        lambda network: family.blank_inputs(folder, network, latents, tokens),
    )


def _check_tokens(group: Group, tokens: int) -> None:
    chosen = group.asked("attn").tokens
    if chosen and max(chosen) >= tokens:
        raise ValueError(
            f"group {group.name!r}: attn.tokens has {max(chosen)}, and the prompt's encoding ends at {tokens - 1}"
        )


def _untiled(shape: tuple[int, ...], spec: ExtractSpec, tile: Sequence[int]) -> tuple[int, ...]:
    """The whole picture's map, from a tile's."""
    channels, *cells = shape
    return (
        channels,
        *(whole * count // side for whole, count, side in zip(spec.image_size, cells, tile, strict=True)),
    )
