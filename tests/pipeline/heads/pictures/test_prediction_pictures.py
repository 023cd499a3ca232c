"""Pictures of predictions show what they should, and no truth where none is known."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.heads.pictures import layout
from pipeline.heads.pictures.match_sheets import _colour
from pipeline.heads.pictures.palette import overlay, palette
from pipeline.heads.pictures.prediction_pictures import _entries, mask_picture, match_picture
from tests.pipeline.heads.shown import count, has_margin, pixels

PICTURE = np.full((40, 80, 3), 120, np.uint8)
CLASSES = ["ground", "bird", "tree"]


def test_masks_lie_over_their_pictures() -> None:
    mask = np.zeros((40, 80), np.int64)
    mask[:, 60:] = 1
    shown = pixels(mask_picture(PICTURE, mask, CLASSES, 255))
    covered = overlay(PICTURE, mask, 3)
    left = 14 + 512 + 6  # of the picture under its mask
    assert (shown[14 : 14 + 256, 14 : 14 + 512] == 120).all()
    assert (shown[14 : 14 + 256, left : left + 384] == covered[0, 0]).all()
    assert (shown[14 : 14 + 256, left + 384 : left + 512] == covered[0, 79]).all()
    assert count(shown, tuple(palette(3)[1])) == 14 * 14  # the legend's
    assert not count(shown, tuple(palette(3)[2])) and has_margin(shown)


def test_the_legend_says_how_much_there_is() -> None:
    mask = np.full((100, 100), 2)
    mask[:30], mask[50, 50], mask[-10:] = 1, 0, 255
    entries = _entries(mask, CLASSES, 255)
    assert [words for _, words in entries] == ["tree 60.0%", "bird 30.0%", "not seen 10.0%", "ground < 0.1%"]
    assert entries[0][0] == tuple(palette(3)[2]) and entries[2][0] == (255, 255, 255)


def test_an_id_that_is_no_class() -> None:
    with pytest.raises(ValueError, match="class id 3; ids go from 0 to 2, and 255 is ignored"):
        mask_picture(PICTURE, np.full((40, 80), 3), CLASSES, 255)


def test_matches_are_marked_at_their_places() -> None:
    """x and y exchanged, or the target's scale taken from the source, would put a mark elsewhere."""
    target = np.full((90, 30, 3), 120, np.uint8)
    points, found = np.array([[20.0, 10.0]]), np.array([[15.0, 80.0]])
    shown = pixels(match_picture(PICTURE, target, points, found))
    colour = np.array([int(_colour(0)[place : place + 2], 16) for place in (1, 3, 5)])
    rows, columns = np.nonzero((np.abs(shown.astype(int) - colour) < 40).all(-1))
    right = columns > 14 + 384  # of the source
    top = 14 + layout.text("x").height + 6
    assert abs(columns[~right].mean() - (14 + 20 * 384 / 80)) < 3
    assert abs(rows[~right].mean() - (top + 10 * 384 / 80)) < 3
    assert abs(columns[right].mean() - (14 + 384 + 12 + 15 * 384 / 90)) < 3
    assert abs(rows[right].mean() - (top + 80 * 384 / 90)) < 3
    assert has_margin(shown)
