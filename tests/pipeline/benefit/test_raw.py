"""Pixels in the place of features."""

from __future__ import annotations

import torch

from pipeline.benefit.raw import CELL, pixel_features


def test_a_cell_holds_its_own_pixels_and_place() -> None:
    picture = torch.zeros(3, 4 * CELL, 2 * CELL, dtype=torch.uint8)
    picture[:, 2 * CELL : 3 * CELL, CELL:] = 255
    found = pixel_features(picture)
    assert found.shape == (3 * CELL**2 + 2, 4, 2)
    pixels, place = found[:-2], found[-2:]
    assert (pixels[:, 2, 1] == 1).all() and pixels.sum() == 3 * CELL**2
    torch.testing.assert_close(place[:, 2, 1], torch.tensor([2 / 3, 1.0]))
