"""Pairs of scenes that show the same cut-out, with points that both show: correspondences that are exact.

Splits are by cut-out: what a head is tested on, it has never been trained on.
"""

from __future__ import annotations

import json
import zlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from io import BytesIO
from itertools import combinations
from typing import Any, Final

import numpy as np
from numpy.typing import NDArray
from PIL.PngImagePlugin import PngImageFile

from pipeline.members import MemberIndex
from pipeline.scenes.correspondences import shared_things, transfer, visible
from schemas.dataset import Pair

_GRID: Final = 12
"""Points along each side of a thing's box that are tried."""
_POINTS: Final = 12
"""Of a pair, at most."""
_LEAST: Final = 4
"""A pair with fewer is none."""
_PER_CUTOUT: Final = 12
"""Pairs of a cut-out, at most, so that none outweighs the others."""


@dataclass(frozen=True)
class LabelledScene:
    """What a shard says of one scene."""

    key: str
    things: Sequence[Mapping[str, Any]]
    """`objects` of the sample's json."""
    instances: NDArray[np.uint8]
    """[H, W]: 1 + the place in `things` of what is seen at each pixel."""


def read_scenes(root: str, samples: Sequence[tuple[str, str]]) -> list[LabelledScene]:
    """The scenes of some (shard, key) under a URL, or `embedded`."""
    index = MemberIndex(root, ["json", "instances.png"])
    return [_scene(key, members) for (_, key), members in zip(samples, index.read_many(samples), strict=True)]


def scene_pairs(scenes: Sequence[LabelledScene], seed: int) -> dict[str, list[Pair]]:
    """Pairs by cut-out, in the order of their names; which ones are taken, and which points, is drawn by the seed."""
    found: dict[str, list[Pair]] = {}
    for first, second in combinations(sorted(scenes, key=lambda one: one.key), 2):
        for here, there in shared_things(first.things, second.things):
            name = f"{first.key} {here} {second.key} {there}"
            rng = np.random.default_rng([seed, zlib.crc32(name.encode())])
            if (pair := _pair(first, here, second, there, rng)) is not None:
                found.setdefault(str(first.things[here]["cutout"]), []).append(pair)
    rng = np.random.default_rng(seed)
    return {
        cutout: [pairs[place] for place in sorted(rng.permutation(len(pairs))[:_PER_CUTOUT])]
        for cutout, pairs in sorted(found.items())
    }


def split_pairs(
    pairs: Mapping[str, Sequence[Pair]], split: int, test: float
) -> tuple[list[Pair], list[Pair]]:
    """Pairs to train on and to test on; a share `test` of the cut-outs is only in the latter."""
    order = np.random.default_rng([split, 1]).permutation(sorted(pairs))
    count = max(1, round(test * len(order)))
    held = set(order[:count].tolist())
    train = [pair for cutout, some in pairs.items() if cutout not in held for pair in some]
    return train, [pair for cutout, some in pairs.items() if cutout in held for pair in some]


def lines(pairs: Sequence[Pair]) -> bytes:
    """A file of pairs."""
    return b"".join(pair.model_dump_json().encode() + b"\n" for pair in pairs)


def _scene(key: str, members: Mapping[str, bytes]) -> LabelledScene:
    instances = np.asarray(PngImageFile(BytesIO(members["instances.png"])))
    return LabelledScene(key, json.loads(members["json"])["objects"], instances)


def _pair(
    first: LabelledScene, here: int, second: LabelledScene, there: int, rng: np.random.Generator
) -> Pair | None:
    one, other = first.things[here], second.things[there]
    points = np.array(list(_grid(one["box_xywh"])))
    moved = transfer(points, one, other)
    seen = np.flatnonzero(visible(points, first.instances, here) & visible(moved, second.instances, there))
    if len(seen) < _LEAST:
        return None
    chosen = np.sort(rng.permutation(seen)[:_POINTS])
    return Pair(
        source=first.key,
        target=second.key,
        category=str(one["class_name"]),
        source_points=[(float(x), float(y)) for x, y in points[chosen]],
        target_points=[(float(x), float(y)) for x, y in moved[chosen]],
        source_box=_box(one),
        target_box=_box(other),
    )


def _grid(box: Sequence[float]) -> Iterator[tuple[float, float]]:
    """Centres of a grid over a box."""
    left, top, width, height = box
    for row in range(_GRID):
        for column in range(_GRID):
            yield left + (column + 0.5) * width / _GRID, top + (row + 0.5) * height / _GRID


def _box(thing: Mapping[str, Any]) -> tuple[float, float, float, float]:
    left, top, width, height = map(float, thing["box_xywh"])
    return left, top, width, height
