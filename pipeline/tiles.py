"""Overlapping tiles of a large picture: where they lie, and one feature map out of theirs.

    step = alignment(image, grids)                      # in whole cells of every map
    for place in places(image, tile, overlap, step):
        blend.add(features_of_the_tile_at(place), place)
    blend.whole()                                       # [B, C, h, w] of the whole picture

Where tiles overlap, each cell is a mean of theirs, with weights that fall linearly toward a tile's edge, so that no
seam shows. Sizes are (height, width) in pixels, places (top, left).
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.geometry import Size

Place = tuple[int, int]


def alignment(image: Size, grids: Iterable[Size]) -> int:
    """Pixels that tiles must begin and end at multiples of, so that no cell of these maps is cut.

    Args:
        image: the whole picture.
        grids: (h, w) of every map of the whole picture, that of the latents included.

    Raises:
        ValueError: the picture is no whole number of pixels a cell.
    """
    strides = set()
    for grid in grids:
        for side, count in zip(image, grid, strict=True):
            if side % count:
                raise ValueError(
                    f"tiles: image_size {list(image)} is no whole number of pixels for each cell of a feature map"
                    f" {list(grid)}; choose multiples of 64"
                )
            strides.add(side // count)
    return math.lcm(*strides)


def places(image: Size, tile: Size, overlap: int, step: int) -> list[Place]:
    """Places of the fewest tiles that cover the image, evenly spread, row by row.

    The first lies at (0, 0), the last flush with the far edges; all are multiples of `step`, and neighbours overlap by
    `overlap` pixels or more.

    Raises:
        ValueError: no such places exist.
    """
    rows, columns = (_starts(image, tile, overlap, step, axis) for axis in (0, 1))
    return [(top, left) for top in rows for left in columns]


class Blend:
    """Lays the maps of all tiles together. Holds one float32 map of the whole picture, on the tiles' device.

    A cell that a single tile has keeps that tile's value exactly; elsewhere the weights of a cell are positive and sum
    to 1 but for rounding. Sums are taken in the order of `add`: another order changes them by rounding alone, at most
    a few units in the last place of float32.

    Args:
        image, tile, overlap, step: as for `places`.
    """

    def __init__(self, image: Size, tile: Size, overlap: int, step: int) -> None:
        self._image, self._tile = image, tile
        self._starts = [_starts(image, tile, overlap, step, axis) for axis in (0, 1)]
        self._missing = set(places(image, tile, overlap, step))
        self._sum: Tensor | None = None
        self._weights: list[dict[int, NDArray[np.float64]]] = []

    def add(self, value: Tensor, place: Place) -> None:
        """The map of the tile at a place, [B, C, h, w] in any floating dtype."""
        assert place in self._missing, f"{place} is no place of a tile, or was added before"
        self._missing.remove(place)
        cells = [side // count for side, count in zip(self._tile, value.shape[2:], strict=True)]
        if self._sum is None:
            grid = [side // cell for side, cell in zip(self._image, cells, strict=True)]
            self._sum = value.new_zeros((*value.shape[:2], *grid), dtype=torch.float32)
            self._weights = [
                _weights(starts, side // cell, cell)
                for starts, side, cell in zip(self._starts, self._tile, cells, strict=True)
            ]
        assert not any(start % cell for start, cell in zip(place, cells, strict=True)), "a tile cuts cells"
        row, column = (start // cell for start, cell in zip(place, cells, strict=True))
        weight = np.outer(self._weights[0][place[0]], self._weights[1][place[1]])
        part = self._sum[:, :, row : row + value.shape[2], column : column + value.shape[3]]
        part += value.float() * torch.from_numpy(weight).to(value.device, torch.float32)

    def whole(self) -> Tensor:
        """The map of the whole picture, float32 [B, C, h, w], once every tile has been added."""
        assert self._sum is not None and not self._missing, f"tiles at {sorted(self._missing)} are missing"
        return self._sum


def _starts(image: Size, tile: Size, overlap: int, step: int, axis: int) -> list[int]:
    """Where tiles begin along one axis."""
    whole, side = image[axis], tile[axis]
    assert 0 < side <= whole and overlap >= 0 and step > 0
    if whole % step or side % step:
        raise ValueError(
            f"tiles: with these taps, tiles begin and end at multiples of {step} pixels, but image_size is"
            f" {list(image)} and tiles.size {list(tile)}; make all of them multiples of {step}, or leave out the"
            " coarsest taps"
        )
    last = (whole - side) // step
    if last == 0:
        return [0]
    furthest = (side - overlap) // step
    if furthest < 1:
        raise ValueError(
            f"tiles: with these taps, tiles begin at multiples of {step} pixels, so of {list(tile)} with overlap"
            f" {overlap} none could follow the first; allowed is an overlap of at most {side - step}, or larger tiles"
        )
    count = math.ceil(last / furthest)
    # Rounding down keeps neighbours in reach: last / count is at most `furthest`, which is whole.
    return [place * last // count * step for place in range(count + 1)]


def _weights(starts: Sequence[int], count: int, cell: int) -> dict[int, NDArray[np.float64]]:
    """Weights [count] of each tile's cells along one axis, by the tile's start; those of any one place sum to 1."""
    first = [start // cell for start in starts]
    ramps = []
    for number, start in enumerate(first):
        weight = np.ones(count)
        middle = np.arange(count) + 0.5
        if number > 0:
            weight = np.minimum(weight, middle / max(1, first[number - 1] + count - start))
        if number + 1 < len(first):
            weight = np.minimum(weight, (count - middle) / max(1, start + count - first[number + 1]))
        ramps.append(weight)
    total = np.zeros(first[-1] + count)
    for start, weight in zip(first, ramps, strict=True):
        total[start : start + count] += weight
    pairs = zip(starts, first, ramps, strict=True)
    return {start: weight / total[place : place + count] for start, place, weight in pairs}
