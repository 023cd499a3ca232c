"""Pixels in the place of features: what a head makes of them without any backbone."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, Final

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional

from pipeline.heads.choice import Choice
from pipeline.heads.problem import Problem
from pipeline.heads.tasks import make
from pipeline.originals import Originals

CELL: Final = 8
"""Pixels a side that become one cell, as the VAE reduces pictures."""
_NAME: Final = "raw/pixels"


def with_pixels(problem: Problem, root: str) -> Problem:
    """The same problem on raw pixels: all of each cell, and where the cell lies.

    Args:
        problem: of any one feature group; its rows and splits stay.
        root: URL under which the shards lie by their ids, or `embedded`.
    """
    height, width = problem.store.manifest.identity["image"]["size"]
    shape = [3 * CELL**2 + 2, height // CELL, width // CELL]
    choice = Choice(("raw",), ("pixels",), (), {_NAME: shape})
    lines = {line["row"]: line for line in problem.store.index.to_pylist()}
    served = _Raw(problem.examples.served, lines, Originals(problem.store, root))
    return replace(
        problem,
        choice=choice,
        examples=replace(problem.examples, served=served),
        task=make(problem.spec, choice, problem.classes),
    )


def pixel_features(picture: Tensor) -> Tensor:
    """float32 [194, H/8, W/8] of a picture uint8 [3, H, W]: 192 pixels of a cell, and (y, x) of its place in 0 to 1."""
    cells = functional.pixel_unshuffle(picture[None].float() / 255, CELL)[0]
    axes = [torch.linspace(0, 1, side) for side in cells.shape[1:]]
    return torch.cat([cells, torch.stack(torch.meshgrid(*axes, indexing="ij"))])


class _Raw:
    """A data set whose maps are replaced by pixels; kept in memory."""

    def __init__(self, served: Any, lines: dict[int, dict[str, Any]], originals: Originals) -> None:
        self._served, self._lines, self._originals = served, lines, originals
        self._known: dict[int, Tensor] = {}

    @property
    def fingerprint(self) -> str:
        return f"pixels of {self._served.fingerprint}"

    def __len__(self) -> int:
        return len(self._served)

    def __getitem__(self, place: int) -> dict[str, Any]:
        return self.__getitems__([place])[0]

    def __getitems__(self, places: Sequence[int]) -> list[dict[str, Any]]:
        items = self._served.__getitems__(places)
        for item in items:
            pair = "rows" in item
            found = [self._pixels(row) for row in (item["rows"] if pair else [item["row"]])]
            item[_NAME] = torch.stack(found) if pair else found[0]
        return list(items)

    def subset(self, places: Sequence[int]) -> _Raw:
        subset = _Raw(self._served.subset(places), self._lines, self._originals)
        subset._known = self._known
        return subset

    def _pixels(self, row: int) -> Tensor:
        if row not in self._known:
            picture = np.ascontiguousarray(np.moveaxis(self._originals.read(self._lines[row]), -1, 0))
            self._known[row] = pixel_features(torch.from_numpy(picture))
        return self._known[row]
