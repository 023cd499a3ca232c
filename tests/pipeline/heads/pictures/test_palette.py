"""Colours of classes: fixed, far apart, and where the mask says."""

from __future__ import annotations

import cv2
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as st_numpy

from pipeline.heads.pictures.palette import DISTINCT, IGNORE_COLOUR, coloured, overlay, palette

PICTURE = np.random.default_rng(0).integers(0, 256, (4, 6, 3), dtype=np.uint8)


def test_a_colour_follows_from_the_id_alone() -> None:
    """Pictures of two data sets, or of two versions, are compared by colour."""
    assert (palette(13) == palette(150)[:13]).all()
    assert palette(4).tolist() == [[24, 24, 30], [36, 36, 246], [36, 246, 36], [246, 36, 36]]


@pytest.mark.parametrize(("classes", "apart"), [(13, 45), (150, 13), (DISTINCT, 10)])
def test_colours_are_far_apart(classes: int, apart: float) -> None:
    """Below about 10 units of CIELAB two patches are hard to tell, ignored pixels' grey among them."""
    colours = np.concatenate([palette(classes), np.array([IGNORE_COLOUR], np.uint8)])
    lab = cv2.cvtColor(colours[None].astype(np.float32) / 255, cv2.COLOR_RGB2LAB)[0]
    distances = np.linalg.norm(lab[:, None] - lab, axis=-1) + 1000 * np.eye(len(lab))
    assert distances.min() >= apart


def test_colours_come_again_rather_than_end() -> None:
    assert (palette(DISTINCT + 3)[DISTINCT:] == palette(3)).all()


@settings(max_examples=40, deadline=None)
@given(
    st_numpy.arrays(st.sampled_from([np.uint8, np.uint16, np.int64]), (3, 5), elements=st.integers(0, 20)),
    st.sampled_from([0, 7, 255, 65535, -1]),
)
def test_every_pixel_has_its_classs_colour(mask: np.ndarray, ignore: int) -> None:
    shown = coloured(mask, 21, ignore)
    assert shown.shape == (3, 5, 3) and shown.dtype == np.uint8
    for place, one in np.ndenumerate(mask):
        expected = IGNORE_COLOUR if one == ignore else tuple(palette(21)[one])
        assert tuple(shown[place]) == expected


@pytest.mark.parametrize("wrong", [13, -1, 254])
def test_an_unknown_class_is_named(wrong: int) -> None:
    """Class K would be shown as ignored, and -1 as the last class, if ids were used as they are."""
    mask = np.array([[0, wrong]], np.int64)
    with pytest.raises(ValueError, match=f"class id {wrong}; ids go from 0 to 12, and 255 is ignored"):
        coloured(mask, 13)


def test_overlay_mixes_by_opacity_and_spares_ignored_pixels() -> None:
    mask = np.full((4, 6), 3, np.uint8)
    mask[0] = 255
    assert (overlay(PICTURE, mask, 5, opacity=0) == PICTURE).all()
    assert (overlay(PICTURE, mask, 5, opacity=1)[1:] == palette(5)[3]).all()
    mixed = overlay(PICTURE, mask, 5, opacity=0.5)
    assert (mixed[0] == PICTURE[0]).all()
    assert np.abs(mixed[1:] - (PICTURE[1:] / 2 + palette(5)[3] / 2)).max() <= 0.5


def test_overlay_refuses_another_size() -> None:
    with pytest.raises(ValueError, match="picture is 4x6, its mask 6x4: bring both to one size"):
        overlay(PICTURE, np.zeros((6, 4), np.uint8), 5)
