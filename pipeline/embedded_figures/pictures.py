"""Pictures for a person to judge: what the backbone generates, reconstructs, and makes of edges."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor

from pipeline.embedded_figures.edges import Followed
from pipeline.embedded_figures.scenes import Scene
from pipeline.picture import Column, Label, draw

PROMPTS: Final = (
    "a photo of a tiger mammal, snow, best quality, sharp",
    "a photo of a large brown horse mammal, sky over grass, best quality, sharp",
    "a photo of a bird, sea, best quality, sharp",
    "a photo of a green frog reptile, forest, best quality, sharp",
    "a photo of a large orange fish, sea, best quality, sharp",
    "a photo of a butterfly insect, sky over grass, best quality, sharp",
    "a photo of a strawberry fruit, sand, best quality, sharp",
    "a photo of a large yellow flower, sky over grass, best quality, sharp",
    "a photo of a large tree, sunset, best quality, sharp",
    "a photo of a red car vehicle, road, best quality, sharp",
    "a photo of a white house building, sky over grass, best quality, sharp",
    "a photo of a guitar household, room, best quality, sharp",
    "a photo of a large planet, night, best quality, sharp",
    "a photo of a small bird on the left and a tree on the right, snow",
    "a photo of a bird, sea, low quality, blurry",
    "a photo of a red car vehicle, road, low quality, noisy",
)
"""Of generated pictures: every class, two things at once, and bad quality."""
_PER_ROW = 4


def samples(prompts: Sequence[str], pictures: NDArray[np.uint8]) -> Image.Image:
    """Pictures [n, H, W, 3], four a row, each below its prompt."""
    rows = []
    for start in range(0, len(prompts), _PER_ROW):
        places = range(start, min(start + _PER_ROW, len(prompts)))
        columns = [Column("", prompts[place], "", [pictures[place]]) for place in places]
        rows.append(
            draw(columns, [Label(f"{places[0] + 1} to {places[-1] + 1}", "")], {}, _aspect(pictures[0]))
        )
    whole = Image.new("RGB", (max(row.width for row in rows), sum(row.height for row in rows)), "white")
    for place, row in enumerate(rows):
        whole.paste(row, (0, sum(above.height for above in rows[:place])))
    return whole


def reconstructions(scenes: Sequence[Scene], images: Tensor) -> Image.Image:
    """Scenes above their reconstructions uint8 [scenes, 3, H, W]."""
    after = images.numpy().transpose(0, 2, 3, 1)
    columns = [
        Column("", scene.quality, scene.caption, [scene.pixels, np.ascontiguousarray(image)])
        for scene, image in zip(scenes, after, strict=True)
    ]
    labels = [Label("scene", ""), Label("reconstruction", "by the VAE")]
    return draw(columns, labels, {}, _aspect(scenes[0].pixels))


def control(result: Followed, most: int) -> Image.Image:
    """For some scenes: the control's edges, what was generated with them, and without."""
    lines = (result.wanted[..., None] * np.uint8(255)).repeat(3, 3)
    columns = [
        Column("", scene.caption, "", cells)
        for scene, *cells in zip(
            result.scenes[:most], lines, result.with_control, result.without, strict=False
        )
    ]
    labels = [Label("edges", "of a held-out scene"), Label("with ControlNet", ""), Label("without", "")]
    return draw(columns, labels, {}, _aspect(lines[0]))


def _aspect(picture: NDArray[np.uint8]) -> float:
    return picture.shape[0] / picture.shape[1]
