"""From a picture's own pixels to the image that the network saw, and back: for labels and for predictions.

Points are (x, y) in pixels; the centre of the first pixel is (0.5, 0.5), in the picture and in the image alike. Where
a picture lies is `pipeline.geometry`'s to say.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from pipeline.geometry import Fit, Size, placement


@dataclass(frozen=True)
class Frame:
    """One picture and the image made of it; sizes are (height, width) in pixels."""

    picture: Size
    """The original's size, upright: the index's `height` and `width`."""
    image: Size
    """The job's `image_size`."""
    fit: Fit = "stretch"

    def to_image(self, points: Tensor) -> Tensor:
        """Points of the picture [..., 2] in the image, float64; what `crop` cut off comes to lie outside of it."""
        kept, box, scale = self._affine()
        return (points.double() - kept) * scale + box

    def to_picture(self, points: Tensor) -> Tensor:
        """Points of the image [..., 2] in the picture, float64; those of padding come to lie outside of it."""
        kept, box, scale = self._affine()
        return (points.double() - box) / scale + kept

    def resampled(self, values: NDArray[np.integer], outside: int) -> NDArray[np.int16]:
        """A map [height, width] over the picture, as one [H, W] over the image, by nearest neighbour.

        Each pixel takes the value of the picture's pixel under its centre; padding is `outside`.
        """
        place = placement(self.picture, self.image, self.fit)
        top, left, height, width = place.box
        first_row, first_column, last_row, last_column = place.kept
        rows = _under(height, first_row, last_row, self.picture[0])
        columns = _under(width, first_column, last_column, self.picture[1])
        image = np.full(self.image, outside, np.int16)
        image[top : top + height, left : left + width] = values[np.ix_(rows, columns)]
        return image

    def _affine(self) -> tuple[Tensor, Tensor, Tensor]:
        """The first kept point of the picture, where it comes to lie in the image, and the scale, [2] in (x, y)."""
        place = placement(self.picture, self.image, self.fit)
        top, left, height, width = place.box
        first_row, first_column, last_row, last_column = place.kept
        kept = torch.tensor([first_column, first_row], dtype=torch.float64)
        extent = torch.tensor([last_column - first_column, last_row - first_row], dtype=torch.float64)
        box = torch.tensor([left, top], dtype=torch.float64)
        return kept, box, torch.tensor([width, height], dtype=torch.float64) / extent


def _under(count: int, first: float, last: float, length: int) -> NDArray[np.int64]:
    """Which of `length` pixels lie under the centres of `count` that cover them from `first` to `last`."""
    centres = first + (np.arange(count) + 0.5) * (last - first) / count
    return np.clip(np.floor(centres).astype(np.int64), 0, length - 1)
