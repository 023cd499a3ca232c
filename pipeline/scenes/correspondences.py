"""Where a point of one scene is in another that shows the same cut-out: exact, by how both were pasted."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

Points = NDArray[np.float64]
"""(x, y) in pixels, [n, 2]; the centre of the first pixel is (0.5, 0.5)."""


def shared_things(
    first: Sequence[Mapping[str, Any]], second: Sequence[Mapping[str, Any]]
) -> list[tuple[int, int]]:
    """Places in both lists of objects (a scene's json: `objects`) of things from the same cut-out."""
    return [
        (here, there)
        for here, one in enumerate(first)
        for there, other in enumerate(second)
        if one["cutout"] == other["cutout"]
    ]


def transfer(points: Points, first: Mapping[str, Any], second: Mapping[str, Any]) -> Points:
    """Points on one thing to the same points on another, which may lie outside of its scene.

    Args:
        points: [n, 2] in the first scene.
        first, second: both things, as objects of the scenes' json, from the same cut-out.

    Raises:
        ValueError: they are of different cut-outs.
    """
    if first["cutout"] != second["cutout"]:
        raise ValueError(
            f"no point of {first['cutout']!r} is on {second['cutout']!r}; give things of the same cut-out"
        )
    x, y, width, height = first["box_xywh"]
    across, down = (points[:, 0] - x) / width, (points[:, 1] - y) / height
    if first["flipped"] != second["flipped"]:
        across = 1 - across
    x, y, width, height = second["box_xywh"]
    return np.stack([x + across * width, y + down * height], axis=1)


def visible(points: Points, instances: NDArray[np.uint8], place: int) -> NDArray[np.bool_]:
    """Which points [n, 2] show the thing at `place` of a scene's objects, and not what covers it, nor lie outside.

    Args:
        points: in pixels.
        instances: the scene's `instances.png`, [H, W].
        place: in the scene's json.
    """
    height, width = instances.shape
    column, row = np.floor(points).astype(np.int64).T
    inside = (column >= 0) & (column < width) & (row >= 0) & (row < height)
    seen = instances[np.clip(row, 0, height - 1), np.clip(column, 0, width - 1)] == place + 1
    return np.asarray(inside & seen, np.bool_)
