"""Where a picture lies in the image that the network sees, and which of a feature map's cells show it.

Sizes are (height, width) in pixels, boxes (top, left, height, width). Pure arithmetic on the picture's own upright
size, which the index keeps: what a crop left out and where padding lies can be worked out again for any stored row.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
from numpy.typing import NDArray

Size = tuple[int, int]
Box = tuple[int, int, int, int]
Fit = Literal["stretch", "crop", "pad"]

_SAME_FRAME = 1.1  # annotators of control images round sides to multiples of 8 to 64


@dataclass(frozen=True)
class Placement:
    """How a picture becomes an image of another size: what is kept of it, and where that comes to lie."""

    kept: tuple[float, float, float, float]
    """Top, left, bottom, right in the picture, in its own pixels; all of it but for `crop`."""
    box: Box
    """In the image; all of it but for `pad`."""


def placement(picture: Size, image: Size, fit: Fit = "stretch") -> Placement:
    """Place a picture.

    - `stretch`: all of the picture over all of the image.
    - `crop`: the largest part of the image's proportions, from the picture's middle, over all of the image. Its
      bounds may fall between pixels, so that proportions are kept exactly.
    - `pad`: all of the picture, as large as the image holds, in its middle. Its shorter side is rounded to whole
      pixels, at least one; where the padding is odd, the pixel more is below or to the right.
    """
    (height, width), (image_height, image_width) = picture, image
    everything = (0.0, 0.0, float(height), float(width))
    whole = (0, 0, image_height, image_width)
    is_tall = height * image_width >= width * image_height  # taller than the image, in proportion
    if fit == "crop" and is_tall:
        kept = width * image_height / image_width
        return Placement(((height - kept) / 2, 0.0, (height + kept) / 2, float(width)), whole)
    if fit == "crop":
        kept = height * image_width / image_height
        return Placement((0.0, (width - kept) / 2, float(height), (width + kept) / 2), whole)
    if fit == "pad" and is_tall:
        side = max(1, _rounded(width * image_height, height))
        return Placement(everything, (0, (image_width - side) // 2, image_height, side))
    if fit == "pad":
        side = max(1, _rounded(height * image_width, width))
        return Placement(everything, ((image_height - side) // 2, 0, side, image_width))
    return Placement(everything, whole)


def cells(box: Sequence[int] | NDArray[np.integer], image: Size, grid: Size) -> NDArray[np.bool_]:
    """Which cells of a feature map of `grid` = (h, w) show the picture: bool [h, w].

    The cells divide the image evenly, and one shows the picture if its centre lies inside the box. A box so thin
    that it holds no centre has the row, or column, of cells that its own middle falls into. An empty box, as slots
    of padding have, has none.

    ```python
    line = store.index.slice(0, 1).to_pylist()[0]
    mask = cells(tuple(line["box"].values()), image_size, features.shape[-2:])
    ```
    """
    top, left, height, width = map(int, box)
    rows = _inside(top, height, image[0], grid[0])
    columns = _inside(left, width, image[1], grid[1])
    return rows[:, None] & columns[None, :]


def same_frame(a: Size, b: Size) -> bool:
    """Whether two pictures of these sizes can show the same frame: their proportions differ by at most a tenth.

    That lets pass what rounded sides do to a control image, and stops one that lies on its side.
    """
    one, other = a[0] * b[1], b[0] * a[1]
    return max(one, other) <= _SAME_FRAME * min(one, other)


def _inside(start: int, length: int, whole: int, count: int) -> NDArray[np.bool_]:
    """Of `count` cells along `whole` pixels, those with their centre in `length` pixels from `start` on."""
    centres = (2 * np.arange(count, dtype=np.int64) + 1) * whole  # in units of 1 / (2 count) pixels
    inside = (centres >= 2 * count * start) & (centres < 2 * count * (start + length))
    if length > 0 and not inside.any():
        inside[(2 * start + length) * count // (2 * whole)] = True
    return inside


def _rounded(numerator: int, denominator: int) -> int:
    """The nearest integer to a fraction, halves up."""
    return (2 * numerator + denominator) // (2 * denominator)
