"""Pictures of what a head says where the truth is not known: masks over pictures, and matches. For people to look at.

Class probabilities have `pipeline.heads.pictures.sheets.classes_sheet`.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Final

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.heads.pictures import layout
from pipeline.heads.pictures.layout import FAINT, below, beside, text, widened
from pipeline.heads.pictures.match_sheets import SIDE, circle, cross, marked
from pipeline.heads.pictures.palette import Mask, Picture, overlay, palette

_WIDE: Final = 512  # pixels of a picture's longer side under its mask
_NO_COLOUR: Final = (255, 255, 255)  # in the legend, of what is left as it is


def mask_picture(picture: Picture, mask: Mask, classes: Sequence[str], outside: int) -> bytes:
    """A picture beside itself with its mask over it; below them each class that occurs, with its share of the pixels.

    Args:
        picture: uint8 [H, W, 3].
        mask: class ids [H, W].
        classes: names by id.
        outside: the id of pixels that the head has not seen.

    Returns:
        A PNG file's bytes.

    Raises:
        ValueError: an id that is not a class, or a mask of another size than the picture.
    """
    shown = layout.sized(picture, _WIDE)
    covered = overlay(np.asarray(shown), layout.sized_mask(mask, _WIDE), len(classes), outside)
    pictures = beside([shown, Image.fromarray(covered)])
    return layout.png(below([pictures, layout.legend(_entries(mask, classes, outside), pictures.width)], 12))


def match_picture(
    source: Picture,
    target: Picture,
    points: NDArray[np.floating],
    found: NDArray[np.floating],
    names: tuple[str, str] = ("source", "target"),
) -> bytes:
    """Points of one picture as circles, and where a head finds them in another as crosses, numbered alike.

    Args:
        source, target: uint8 [H, W, 3], each of any size.
        points: (x, y) in pixels of the source, [n, 2].
        found: in pixels of the target, [n, 2].
        names: of the two, to stand above them.

    Returns:
        A PNG file's bytes.
    """
    cells = [marked(source, points, circle), marked(target, found, cross)]
    columns = [below([text(name, FAINT, 50), cell]) for name, cell in zip(names, cells, strict=True)]
    return layout.png(beside([widened(column, SIDE) for column in columns], 12))


def _entries(mask: Mask, classes: Sequence[str], outside: int) -> list[tuple[tuple[int, int, int], str]]:
    """Colours and words of the legend, the largest share first."""
    ids, counts = np.unique(mask, return_counts=True)
    colours = palette(len(classes))
    entries = []
    for place in np.argsort(-counts, kind="stable"):
        one = int(ids[place])
        red, green, blue = _NO_COLOUR if one == outside else colours[one].tolist()
        name = "not seen" if one == outside else classes[one]
        share = counts[place] / mask.size
        entries.append(((red, green, blue), f"{name} {share:.1%}" if share >= 0.001 else f"{name} < 0.1%"))
    return entries
