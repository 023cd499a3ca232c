"""Maps of one image at several resolutions, brought to one: the taps of a backbone have a resolution each, and a head
that works cell by cell needs all their channels at every cell.
"""

from __future__ import annotations

from collections.abc import Sequence

from torch import Tensor, cat
from torch.nn import functional


def align(maps: Sequence[Tensor], size: tuple[int, int] | None = None) -> Tensor:
    """Concatenate maps [..., c_k, h_k, w_k] of the same images to float32 [..., sum of c_k, H, W].

    Args:
        maps: at least one; their leading sizes are the same.
        size: (H, W); default: that of the map with most cells.

    Raises:
        ValueError: no map.
    """
    if not maps:
        raise ValueError("there is no map to align; give at least one")
    if size is None:
        height, width = max((one.shape[-2:] for one in maps), key=lambda sides: sides[0] * sides[1])
        size = (height, width)
    return cat([resized(one, size) for one in maps], -3)


def resized(maps: Tensor, size: tuple[int, int]) -> Tensor:
    """Maps [..., C, h, w] at another resolution: bilinear, float32 [..., C, H, W].

    The image's edges stay where they are (`align_corners=False`). Where maps shrink, each new cell is the weighted
    mean of all cells that it covers; else those between the new centres would be lost.
    """
    maps = maps.float()
    if tuple(maps.shape[-2:]) == size:
        return maps
    shrinks = size[0] < maps.shape[-2] or size[1] < maps.shape[-1]
    flat = maps.flatten(0, -4) if maps.ndim > 3 else maps[None]
    new = functional.interpolate(flat, size=size, mode="bilinear", align_corners=False, antialias=shrinks)
    return new.reshape(*maps.shape[:-2], *size)
