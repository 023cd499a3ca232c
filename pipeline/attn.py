"""Aggregated cross-attention: where in the image the network looks for each token of the prompt.

`sources` names the cross-attention maps that are needed, `pipeline.taps` records them, and `aggregate` makes
one map [B, C, h, w] of them: the mean over heads, then over the layers of one resolution, for a range of
resolutions, each resized to the latents' size, concatenated, coarsest first. Channels: resolutions x tokens,
so 2 x 77 = 154 with a prompt of 77 tokens and the reference's choices, which are the defaults.

Transformers have one resolution, the grid of tokens (image/16), and no stages: all blocks count. In SD3 and FLUX,
where prompt and image share a softmax, a value is the prompt's share of it.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from schemas import dit_taps
from schemas import taps as vocabulary

LATENT = 8
"""Pixels of the image a latent, along each side."""
_PIXELS = (3, 6)
"""Input channels of networks that work on pixels themselves: pictures, and pictures beside smaller ones."""


def sources(
    config: Mapping[str, Any], *, stages: Sequence[str] | None = None, strides: Sequence[int] = (16, 32)
) -> list[str]:
    """The cross-attention maps to record, averaged over heads, in the network's order.

    stages: of a UNet, of `down`, `mid` and `up`; default: up. strides: the finest and the coarsest resolution that
    count, in pixels of the image a token: from image/32 to image/16. Raises ValueError where no layer is left.
    """
    of_stride = {
        tap: _stride(tap, config)
        for tap in vocabulary.names(config)
        if tap.endswith("-cross-map") and _in_stages(tap, stages, config)
    }
    found = [tap for tap, stride in of_stride.items() if strides[0] <= stride <= strides[1]]
    if not found:
        where = "" if _is_transformer(config) else f" in the stages {', '.join(stages or ('up',))}"
        at = ", ".join(f"image/{stride}" for stride in sorted(set(of_stride.values())))
        raise ValueError(
            f"this network has no cross-attention{where} at image/{strides[0]} to image/{strides[1]}; "
            + (f"it has some at {at}" if at else "name other stages (down, mid, up)")
        )
    return [f"{tap}-mean" for tap in found]


def aggregate(
    maps: Mapping[str, Tensor], latent_size: tuple[int, int], tokens: Sequence[int] | slice = slice(None)
) -> Tensor:
    """Recorded maps [B, heads, query, key] of `sources` -> [B, resolutions x tokens, h, w], in their dtype.

    latent_size: (h, w) of the latents; tokens: which of the prompt's count, all by default. Raises ValueError
    for a map whose queries are no grid of these latents.
    """
    by_grid: dict[tuple[int, int], list[Tensor]] = {}
    for tap, value in maps.items():
        by_grid.setdefault(_grid(tap, value.shape[2], latent_size), []).append(value.mean(dim=1))
    levels = []
    for grid in sorted(by_grid):
        mean = torch.stack(by_grid[grid]).mean(dim=0)[..., tokens]  # [B, query, tokens]
        image = mean.unflatten(1, grid).movedim(-1, 1)
        levels.append(functional.interpolate(image, size=latent_size, mode="nearest"))
    return torch.cat(levels, dim=1)


def shape(
    maps: Sequence[Sequence[int]], latent_size: tuple[int, int], tokens: int | None = None
) -> tuple[int, int, int]:
    """What `aggregate` makes of maps of these shapes [heads, query, key]; `tokens`: how many count, all by default."""
    resolutions = len({one[1] for one in maps})
    return (resolutions * (maps[0][2] if tokens is None else tokens), *latent_size)


def _is_transformer(config: Mapping[str, Any]) -> bool:
    return dit_taps.class_name(config) in dit_taps.NETWORKS


def _in_stages(tap: str, stages: Sequence[str] | None, config: Mapping[str, Any]) -> bool:
    if not _is_transformer(config):
        return tap.split("-")[0] in (stages or ("up",))
    if stages is not None:
        raise ValueError(f"stages are {', '.join(stages)}, and transformers have none; leave them out")
    return True


def _stride(tap: str, config: Mapping[str, Any]) -> int:
    """Pixels of the image a token."""
    if _is_transformer(config):
        return LATENT * dit_taps.patch(config)
    pixels = 1 if config.get("in_channels") in _PIXELS else LATENT
    return int(pixels * 2 ** _halvings(tap, len(config["down_block_types"])))


def _halvings(tap: str, levels: int) -> int:
    """How often the latents are halved before a tap: each down level but the last ends with a halving."""
    stage, level = tap.split("-")[:2]
    if stage == "mid":
        return levels - 1
    index = int(level.removeprefix("level"))
    return index if stage == "down" else levels - 1 - index


def _grid(tap: str, queries: int, latent_size: tuple[int, int]) -> tuple[int, int]:
    height, width = latent_size
    while height * width > queries and max(height, width) > 1:
        height, width = -(-height // 2), -(-width // 2)  # a convolution with stride 2 rounds up
    if height * width != queries:
        raise ValueError(
            f"tap {tap} has {queries} queries, which is no halving of latents of {latent_size[0]} x "
            f"{latent_size[1]}; give the (h, w) of the latents that it was recorded from"
        )
    return height, width
