"""Aggregated cross-attention: where in the image the network looks for each token of the prompt.

`sources` names the cross-attention maps that are needed, `pipeline.taps` records them, and `aggregate` makes
one map [B, C, h, w] of them: the mean over heads, then over the layers of one resolution, for a range of
resolutions, each resized to the latents' size, concatenated, coarsest first. Channels: resolutions x tokens,
so 2 x 77 = 154 with a prompt of 77 tokens and the reference's choices, which are the defaults.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from schemas import taps as vocabulary

LATENT = 8
"""Pixels of the image a latent, along each side."""


def sources(
    unet_config: Mapping[str, Any], *, stages: Sequence[str] = ("up",), strides: tuple[int, int] = (16, 32)
) -> list[str]:
    """The cross-attention maps to record, in the network's order.

    stages: of `down`, `mid` and `up`. strides: the finest and the coarsest resolution that count, in pixels
    of the image a token: from image/32 to image/16. Raises ValueError where no layer of this network is left.
    """
    found = []
    for tap in vocabulary.names(unet_config):
        if tap.endswith("-cross-map") and tap.split("-")[0] in stages:
            stride = LATENT * 2 ** _halvings(tap, len(unet_config["down_block_types"]))
            if strides[0] <= stride <= strides[1]:
                found.append(tap)
    if not found:
        raise ValueError(
            f"this network has no cross-attention in the stages {', '.join(stages)} at image/{strides[0]} to "
            f"image/{strides[1]}; name other stages (down, mid, up) or a wider range"
        )
    return found


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
