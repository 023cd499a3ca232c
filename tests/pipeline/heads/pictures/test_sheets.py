"""Sheets of masks and classes, pixel by pixel."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.heads.pictures.layout import BAD, GOOD, SIDE
from pipeline.heads.pictures.palette import IGNORE_COLOUR, palette
from pipeline.heads.pictures.sheets import _NEUTRAL, WRONG, classes_sheet, masks_sheet
from tests.pipeline.heads.shown import count, has_margin, pixels

NAMES = [f"class {i}" for i in range(150)]
SIZE = (64, 128)
PICTURE = np.full((*SIZE, 3), 90, np.uint8)
SWATCH = 14 * 14
MARGIN, GAP, LINE = 14, 6, 17 + 8


def mask(left: int, right: int) -> NDArray[np.uint8]:
    """Two classes, side by side."""
    found = np.full(SIZE, left, np.uint8)
    found[:, 64:] = right
    return found


def cells(sheet: NDArray[np.uint8], columns: int, lines: int) -> list[NDArray[np.uint8]]:
    """The first row's, below so many lines of text."""
    top, lefts = MARGIN + lines * LINE, [MARGIN + place * (SIDE + GAP) for place in range(columns)]
    return [sheet[top : top + SIDE // 2, left : left + SIDE] for left in lefts]


def test_masks_are_shown_in_their_classes_colours() -> None:
    truth = mask(1, 149)
    truth[:8] = 255
    sheet = pixels(masks_sheet([PICTURE], [truth], [mask(1, 7)], NAMES))
    picture, true, predicted, differing = cells(sheet, 4, lines=2)
    colours = palette(150)
    assert (picture == 90).all()
    assert (true[:16] == IGNORE_COLOUR).all()
    assert (true[16:, :128] == colours[1]).all() and (true[16:, 128:] == colours[149]).all()
    assert (predicted[:, :128] == colours[1]).all() and (predicted[:, 128:] == colours[7]).all()
    assert (differing[16:, 128:] == WRONG).all() and (differing[:16] == IGNORE_COLOUR).all()
    assert count(differing[16:, :128], WRONG) == 0


def test_the_legend_has_the_classes_that_occur() -> None:
    """All 150 would drown the few that a reader looks for."""
    sheet = pixels(masks_sheet([PICTURE], None, [mask(3, 120)], NAMES))
    legend = sheet[MARGIN + LINE + SIDE // 2 :]
    found = [one for one in range(150) if count(legend, tuple(palette(150)[one])) == SWATCH]
    assert found == [3, 120]
    assert count(legend, IGNORE_COLOUR) != SWATCH and count(legend, WRONG) == 0


def test_pictures_differ_in_size_and_labels_and_names_may_be_long() -> None:
    """Labels and names come from users' files."""
    tall = np.zeros((700, 20), np.uint8)
    names = ["n" * 300, *NAMES[1:]]
    sheet = pixels(
        masks_sheet(
            [PICTURE, np.zeros((700, 20, 3), np.uint8)],
            [mask(0, 1), tall],
            [mask(0, 2), tall],
            names,
            labels=["k" * 500, "short"],
        )
    )
    assert has_margin(sheet, MARGIN)
    assert sheet.shape[0] > 2 * MARGIN + LINE + SIDE // 2 + SIDE


def test_masks_and_pictures_must_belong_together() -> None:
    with pytest.raises(ValueError, match="1 pictures have 2 predictions; give one for each picture"):
        masks_sheet([PICTURE], None, [mask(0, 1)] * 2, NAMES)
    with pytest.raises(
        ValueError, match=r"picture 0 is \[64, 128\], its truth \[128, 64\]; bring both to one"
    ):
        masks_sheet([PICTURE], [mask(0, 1).T], [mask(0, 1)], NAMES)
    with pytest.raises(ValueError, match="class id 149; ids go from 0 to 9"):
        masks_sheet([PICTURE], None, [mask(0, 149)], NAMES[:10])


def test_bars_are_as_long_as_classes_are_likely() -> None:
    probabilities = np.array([[0.05, 0.5, 0.25, 0.2]])
    sheet = pixels(classes_sheet([PICTURE], probabilities, NAMES[:4]))
    assert count(sheet, _NEUTRAL) == (100 + 50 + 40) * 8
    assert [count(sheet, colour) for colour in (GOOD, BAD)] == [0, 0]


def test_the_true_class_is_told_from_a_wrong_one() -> None:
    probabilities = np.array([[0.05, 0.5, 0.25, 0.2]])
    right, second, out = (
        pixels(classes_sheet([PICTURE], probabilities, NAMES[:4], [truth])) for truth in (1, 2, 0)
    )
    assert count(right, BAD) == 0 and count(right, GOOD) >= 100 * 8
    assert count(second, BAD) >= 100 * 8 and 50 * 8 <= count(second, GOOD) < 100 * 8
    assert count(out, BAD) >= 100 * 8 and count(out, GOOD) == 0
    assert out.shape[0] > right.shape[0]  # the true class is not among three, and named below them


def test_long_names_of_classes_are_whole() -> None:
    names = ["w" * 400, "a b " * 90, "$x_1$"]
    sheet = pixels(classes_sheet([PICTURE] * 5, np.full((5, 3), 1 / 3), names, [0] * 5))
    assert has_margin(sheet, MARGIN)


def test_probabilities_must_fit() -> None:
    with pytest.raises(ValueError, match=r"\[1, 4\] for 2 pictures and 4 classes; expected \[2, 4\]"):
        classes_sheet([PICTURE] * 2, np.zeros((1, 4)), NAMES[:4])


def test_the_same_sheets_have_the_same_bytes() -> None:
    """Results are compared by hash."""
    probabilities = np.full((1, 4), 0.25)
    assert len({masks_sheet([PICTURE], None, [mask(0, 1)], NAMES) for _ in range(2)}) == 1
    assert len({classes_sheet([PICTURE], probabilities, NAMES[:4]) for _ in range(2)}) == 1
