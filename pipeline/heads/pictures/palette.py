"""The colour of a class: the same in every picture, and far from the colours of the other classes."""

from __future__ import annotations

from functools import cache
from typing import Final

import cv2
import numpy as np
from numpy.typing import NDArray

Picture = NDArray[np.uint8]
"""RGB [H, W, 3]."""
Mask = NDArray[np.integer]
"""Class ids [H, W]."""
IGNORE_COLOUR: Final = (160, 160, 160)
"""Of pixels that are not judged."""
DISTINCT: Final = 256
"""From so many classes on, colours come again."""
_BACKGROUND: Final = (24, 24, 30)
_LIGHTNESS: Final = (30, 88)
"""In CIELAB, 0 to 100: neither lost beside the background nor on white paper."""


def palette(classes: int) -> NDArray[np.uint8]:
    """RGB [classes, 3]: a class's colour follows from its id alone, however many classes there are.

    Class 0, which most data sets have as the background, is dark; none is a grey like that of ignored pixels.
    """
    return _colours()[np.arange(classes) % DISTINCT]


def coloured(mask: Mask, classes: int, ignore: int = 255) -> Picture:
    """A mask [H, W] of class ids in their colours: RGB [H, W, 3].

    Raises:
        ValueError: an id that is neither a class nor `ignore`.
    """
    ids = mask.astype(np.int64)
    ignored = ids == ignore
    wrong = ids[~ignored & ((ids < 0) | (ids >= classes))]
    if wrong.size:
        raise ValueError(
            f"a mask has the class id {wrong[0]}; ids go from 0 to {classes - 1}, and {ignore} is ignored:"
            " give the number of classes that the mask was made for"
        )
    ids[ignored] = classes
    return np.concatenate([palette(classes), np.array([IGNORE_COLOUR], np.uint8)])[ids]


def overlay(picture: Picture, mask: Mask, classes: int, ignore: int = 255, opacity: float = 0.6) -> Picture:
    """A picture [H, W, 3] with its mask [H, W] over it: RGB [H, W, 3]; ignored pixels stay as they are.

    Args:
        picture: RGB.
        mask: class ids.
        classes: how many there are.
        ignore: the id of pixels that are not judged.
        opacity: 0 shows the picture only, 1 the mask only.

    Raises:
        ValueError: picture and mask differ in size, or an id is not a class.
    """
    if picture.shape[:2] != mask.shape:
        raise ValueError(
            f"picture is {picture.shape[0]}x{picture.shape[1]}, its mask {'x'.join(map(str, mask.shape))}:"
            " bring both to one size"
        )
    share = np.where(mask == ignore, 0.0, opacity)[..., None]
    mixed = (1 - share) * picture + share * coloured(mask, classes, ignore)
    return np.rint(mixed).astype(np.uint8)


@cache
def _colours() -> NDArray[np.uint8]:
    """[DISTINCT, 3]: the next one is always that which lies farthest, to the eye, from all before it."""
    steps = np.arange(36, 248, 15, dtype=np.uint8)  # short of the most glaring
    candidates = np.stack(np.meshgrid(steps, steps, steps, indexing="ij"), -1).reshape(-1, 3)
    lightness = _lab(candidates)[:, 0]
    candidates = candidates[(lightness >= _LIGHTNESS[0]) & (lightness <= _LIGHTNESS[1])]
    places = _lab(candidates)
    taken = _lab(np.array([_BACKGROUND, IGNORE_COLOUR, (255, 255, 255)], np.uint8))
    nearest = ((places[:, None] - taken) ** 2).sum(-1).min(1)
    chosen = [np.array(_BACKGROUND, np.uint8)]
    for _ in range(DISTINCT - 1):
        best = nearest.argmax()
        chosen.append(candidates[best])
        nearest = np.minimum(nearest, ((places - places[best]) ** 2).sum(1))
    return np.stack(chosen)


def _lab(colours: NDArray[np.uint8]) -> NDArray[np.int64]:
    """CIELAB [n, 3] in whole units, so that distances are exact and every machine chooses the same colours."""
    lab = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    return np.rint(lab).astype(np.int64)
