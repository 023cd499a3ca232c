"""UPerNet, the decoder for segmentation with many labelled images (Xiao et al. 2018, "Unified Perceptual Parsing").

It is the paper's choice, and a backbone's taps are the pyramid that it takes: the coarsest level is pooled to see the
whole image, and finer levels are added on the way to the finest resolution, where all are joined.

Normalisation is by groups of channels within an image, not over the batch: batches are small, results do not depend on
what else is in them, and there is no running state, so that training that goes on from a checkpoint is the undisturbed
one. There is no dropout, for the same reason.
"""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor, nn
from torch.nn import functional

from pipeline.heads.networks.alignment import align, resized

_NORMALISED = 8
"""Channels that are normalised together; several, since a pooled map has one cell."""
_POOLED = (1, 2, 3, 6)
"""Cells a side of the pooled maps, as in the reference."""


class UPerNet(nn.Module):
    """Classifies the cells of the finest level.

    Args:
        channels: of each level, from coarse to fine.
        classes: how many.
        width: channels inside, a multiple of 8.

    Raises:
        ValueError: no level, or a width that is no multiple of 8.
    """

    def __init__(self, channels: Sequence[int], classes: int, width: int = 256) -> None:
        super().__init__()
        if not channels:
            raise ValueError("UPerNet has no levels; give the channels of at least one")
        if width < 1 or width % _NORMALISED:
            raise ValueError(f"UPerNet has width {width}; expected a multiple of {_NORMALISED}")
        coarsest, *finer = channels
        self.pooled = nn.ModuleList(_block(coarsest, width, 1) for _ in _POOLED)
        self.coarsest = _block(coarsest + len(_POOLED) * width, width, 3)
        self.lateral = nn.ModuleList(_block(some, width, 1) for some in finer)
        self.smooth = nn.ModuleList(_block(width, width, 3) for _ in finer)
        self.join = _block(len(channels) * width, width, 3)
        self.classify = nn.Conv2d(width, classes, 1)

    def forward(self, levels: Sequence[Tensor]) -> Tensor:
        """Logits [B, classes, h, w] at the last level's resolution, of levels [B, C_l, h_l, w_l] from coarse to fine.

        Raises:
            ValueError: another number of levels than there were channels.
        """
        if len(levels) != 1 + len(self.lateral):
            raise ValueError(f"UPerNet got {len(levels)} levels; it was made for {1 + len(self.lateral)}")
        coarser = self._context(levels[0])
        found = [coarser]
        for level, lateral, smooth in zip(levels[1:], self.lateral, self.smooth, strict=True):
            coarser = lateral(level) + resized(coarser, _size(level))
            found.append(smooth(coarser))
        return self.classify(self.join(align(found, _size(levels[-1]))))

    def _context(self, level: Tensor) -> Tensor:
        """Pyramid pooling: each cell beside the means over ever smaller parts of the image."""
        pooled = [
            resized(block(functional.adaptive_avg_pool2d(level, side)), _size(level))
            for side, block in zip(_POOLED, self.pooled, strict=True)
        ]
        return self.coarsest(torch.cat([level, *pooled], 1))


def _block(inputs: int, outputs: int, kernel: int) -> nn.Sequential:
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, padding=kernel // 2, bias=False),
        nn.GroupNorm(outputs // _NORMALISED, outputs),
        nn.ReLU(),
    )


def _size(maps: Tensor) -> tuple[int, int]:
    return maps.shape[-2], maps.shape[-1]
