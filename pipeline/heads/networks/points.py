"""Points in an image, as shares of its width and height: (x, y) from 0 to 1, where the centre of the first of w columns
is at 0.5 / w. One such point is the same place in maps of every resolution, and in the image.
"""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional


def centres(size: tuple[int, int], device: torch.device | None = None) -> Tensor:
    """Centres of the cells of a map of `size` = (h, w), row by row, float32 [h * w, 2]."""
    rows, columns = ((torch.arange(side, device=device) + 0.5) / side for side in size)
    y, x = torch.meshgrid(rows, columns, indexing="ij")
    return torch.stack([x, y], -1).view(-1, 2)


def sample_points(maps: Tensor, points: Tensor) -> Tensor:
    """Values of maps [B, C, h, w] at points [B, P, 2], bilinear between centres of cells: [B, P, C].

    At the centres of a larger map's cells these are the values that bilinear enlargement has there, without making the
    enlarged map. Beyond the outermost centres the nearest value counts.
    """
    grid = points.to(maps.dtype)[:, :, None] * 2 - 1
    found = functional.grid_sample(maps, grid, mode="bilinear", padding_mode="border", align_corners=False)
    return found[..., 0].transpose(1, 2)
