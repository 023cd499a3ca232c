"""Sheets of matches: marks where the points are."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline.heads.pictures.match_sheets import Pair, matches_sheet
from pipeline.heads.pictures.palette import palette
from tests.pipeline.heads.shown import has_margin, pixels

GROUND = 128
SIDE, MARGIN, GAP = 384, 14, 6
TOP = MARGIN + 2 * (17 + 8)
POINTS = np.array([[16.0, 40.0], [80.0, 24.0]])
TRUE = POINTS - np.array([0.0, 8.0])
FOUND = np.array([[16.0, 32.0], [32.0, 40.0]])
PAIR = Pair(
    np.full((48, 96, 3), GROUND, np.uint8),
    np.full((96, 96, 3), GROUND, np.uint8),
    POINTS,
    TRUE,
    FOUND,
    np.array([True, False]),
)
COLOURS = palette(3)[1:]


def shown(pair: Pair) -> tuple[NDArray[np.uint8], NDArray[np.uint8]]:
    """Source and target, four times enlarged."""
    sheet = pixels(matches_sheet([pair]))
    right = MARGIN + SIDE + GAP
    return sheet[TOP : TOP + SIDE // 2, MARGIN : MARGIN + SIDE], sheet[TOP : TOP + SIDE, right : right + SIDE]


def is_near(picture: NDArray[np.uint8], at: tuple[float, float], colour: NDArray[np.uint8]) -> bool:
    """Whether a pixel next to (x, y) has about this colour; edges are smooth."""
    x, y = round(at[0] * 4), round(at[1] * 4)
    patch = picture[max(y - 2, 0) : y + 2, max(x - 2, 0) : x + 2].astype(int)
    return bool((np.abs(patch - colour.astype(int)).max(-1) < 40).any())


def test_circles_are_where_points_are() -> None:
    """Pixels of the original, x first, its first pixel's centre at 0.5."""
    source, target = shown(PAIR)
    for picture, points in ((source, POINTS), (target, TRUE)):
        for (x, y), colour in zip(points, COLOURS, strict=True):
            assert is_near(picture, (x - 1.6, y), colour) and is_near(picture, (x, y + 1.6), colour)
    x, y = POINTS[0]
    assert (source[round(y * 4), round(x * 4)] == GROUND).all()  # what lies at the point stays in sight


def test_a_cross_is_where_the_point_was_found() -> None:
    _, target = shown(PAIR)
    for (x, y), colour in zip(FOUND, COLOURS, strict=True):
        assert is_near(target, (x, y), colour)
        assert is_near(target, (x + 1.2, y + 1.2), colour) and is_near(target, (x - 1.2, y + 1.2), colour)


def test_a_line_leads_from_truth_to_what_is_wrong_only() -> None:
    x, y = (TRUE[1] + FOUND[1]) / 2
    assert is_near(shown(PAIR)[1], (x, y), COLOURS[1])
    right = replace(PAIR, right=np.array([True, True]))
    assert not is_near(shown(right)[1], (x, y), COLOURS[1])


def test_points_at_the_edge_long_labels_and_pairs_without_points() -> None:
    corners = np.array([[0.0, 0.0], [96.0, 48.0]])
    edge = replace(
        PAIR, source_points=corners, target_points=corners * [1, 2], predicted=FOUND, label="k" * 400
    )
    none = np.zeros((0, 2))
    empty = Pair(PAIR.source, PAIR.target, none, none, none, np.zeros(0, bool))
    data = matches_sheet([edge, empty])
    assert has_margin(pixels(data), MARGIN)
    assert data == matches_sheet([edge, empty])


def test_points_must_be_as_many() -> None:
    with pytest.raises(
        ValueError, match=r"pair 'a to b' .* \[\[2, 2\], \[2, 2\], \[1, 2\]\]; each must be \[2, 2\]"
    ):
        matches_sheet([replace(PAIR, predicted=FOUND[:1], label="a to b")])
