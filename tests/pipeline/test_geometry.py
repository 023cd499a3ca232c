"""Where pictures come to lie: nothing lost but what a crop must lose, nothing distorted but by a stretch."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.geometry import Fit, Size, cells, placement, same_frame

SIZES = st.tuples(st.integers(1, 5000), st.integers(1, 5000))
IMAGES = st.tuples(st.integers(1, 300), st.integers(1, 300)).map(lambda size: (8 * size[0], 8 * size[1]))
FITS: st.SearchStrategy[Fit] = st.sampled_from(["stretch", "crop", "pad"])


@given(SIZES, IMAGES, FITS)
def test_what_is_kept_and_where_it_lies_are_inside(picture: Size, image: Size, fit: Fit) -> None:
    place = placement(picture, image, fit)
    top, left, height, width = place.box
    assert top >= 0 and left >= 0 and height >= 1 and width >= 1
    assert top + height <= image[0] and left + width <= image[1]
    first_row, first_column, last_row, last_column = place.kept
    assert 0 <= first_row < last_row <= picture[0] and 0 <= first_column < last_column <= picture[1]
    for edge in place.kept:  # PIL takes its box as float32
        assert np.float32(edge) <= max(picture)


@given(SIZES, IMAGES)
def test_a_stretch_takes_all_to_all(picture: Size, image: Size) -> None:
    place = placement(picture, image)
    assert place.kept == (0, 0, *picture) and place.box == (0, 0, *image)


@given(SIZES, IMAGES)
def test_a_crop_fills_the_image_and_keeps_proportions(picture: Size, image: Size) -> None:
    place = placement(picture, image, "crop")
    assert place.box == (0, 0, *image)
    top, left, bottom, right = place.kept
    assert (bottom - top) * image[1] == pytest.approx((right - left) * image[0], rel=1e-9)
    assert top == pytest.approx(picture[0] - bottom) and left == pytest.approx(picture[1] - right)
    assert bottom - top == picture[0] or right - left == picture[1], "no more is lost than must be"


@given(SIZES, IMAGES)
def test_padding_keeps_all_in_the_middle_with_its_proportions(picture: Size, image: Size) -> None:
    place = placement(picture, image, "pad")
    assert place.kept == (0, 0, *picture)
    top, left, height, width = place.box
    assert height == image[0] or width == image[1], "as large as the image holds"
    scale = min(image[0] / picture[0], image[1] / picture[1])
    for side, original in zip((height, width), picture, strict=True):
        assert abs(side - scale * original) <= 0.5 + 1e-6 or side == 1
    assert 0 <= image[0] - height - 2 * top <= 1 and 0 <= image[1] - width - 2 * left <= 1


@pytest.mark.parametrize(
    ("picture", "fit", "kept", "box"),
    [
        ((480, 640), "crop", (0.0, 80.0, 480.0, 560.0), (0, 0, 512, 512)),
        ((640, 480), "crop", (80.0, 0.0, 560.0, 480.0), (0, 0, 512, 512)),
        ((480, 640), "pad", (0.0, 0.0, 480.0, 640.0), (64, 0, 384, 512)),
        ((640, 479), "pad", (0.0, 0.0, 640.0, 479.0), (0, 64, 512, 383)),
        ((1, 5000), "pad", (0.0, 0.0, 1.0, 5000.0), (255, 0, 1, 512)),
    ],
)
def test_usual_pictures(
    picture: Size, fit: Fit, kept: tuple[float, ...], box: tuple[int, int, int, int]
) -> None:
    place = placement(picture, (512, 512), fit)
    assert (place.kept, place.box) == (kept, box)


def test_cells_whose_centre_the_picture_holds() -> None:
    """The centres of cells of 16 pixels are at 8, 24, 40 and 56: a box from 8 on has the first, one from 9 has not."""
    assert cells((8, 0, 16, 64), (64, 64), (4, 4)).sum(1).tolist() == [4, 0, 0, 0]
    assert cells((9, 0, 16, 64), (64, 64), (4, 4)).sum(1).tolist() == [0, 4, 0, 0]
    assert cells(np.array([0, 20, 64, 30], np.int32), (64, 64), (4, 4)).sum(0).tolist() == [0, 4, 4, 0]
    assert cells((0, 0, 64, 64), (64, 64), (3, 5)).all(), "grids that do not divide the image"


def test_a_thin_picture_has_a_cell() -> None:
    """Its mean would otherwise be over nothing."""
    assert cells((30, 0, 1, 64), (64, 64), (2, 2)).tolist() == [[True, True], [False, False]]
    assert cells((63, 63, 1, 1), (64, 64), (1, 1)).all()


def test_padding_slots_have_no_cell() -> None:
    assert not cells((0, 0, 0, 0), (64, 64), (8, 8)).any()


@given(SIZES, IMAGES, st.sampled_from(["crop", "pad"]), st.integers(1, 64), st.integers(1, 64))
def test_cells_are_a_box_that_follows_the_pixels(
    picture: Size, image: Size, fit: Fit, rows: int, columns: int
) -> None:
    box = placement(picture, image, fit).box
    mask = cells(box, image, (rows, columns))
    assert mask.any() and mask.dtype == bool
    for axis, count in ((0, rows), (1, columns)):
        inside = np.flatnonzero(mask.any(1 - axis))
        assert (np.diff(inside) == 1).all()
        if len(inside) > 1:
            centres = (inside + 0.5) * image[axis] / count
            assert box[axis] <= centres[0] + 1e-6 and centres[-1] - 1e-6 < box[axis] + box[axis + 2]
            assert abs(len(inside) - box[axis + 2] * count / image[axis]) <= 1


@pytest.mark.parametrize(
    ("control", "picture", "same"),
    [
        ((480, 640), (480, 640), True),
        ((240, 320), (480, 640), True),
        ((512, 704), (375, 500), True),  # an annotator's sides, rounded to multiples of 64
        ((640, 480), (480, 640), False),
        ((512, 512), (480, 640), False),
        ((1, 1), (480, 640), False),
    ],
)
def test_control_images_of_the_same_frame(control: Size, picture: Size, same: bool) -> None:
    assert same_frame(control, picture) is same_frame(picture, control) is same
