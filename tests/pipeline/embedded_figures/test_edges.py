"""F1 of edges by hand, within a pixel and no more."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.embedded_figures import edges
from pipeline.embedded_figures.edges import Edges, Followed
from tests.evaluation_scenes import scene


def lines(*rows: int) -> Edges:
    """One picture [1, 32, 32] with edges in some rows."""
    found = np.zeros((1, 32, 32), np.bool_)
    found[:, list(rows)] = True
    return found


@pytest.mark.parametrize(
    ("found", "wanted", "expected"),
    [
        (lines(5), lines(5), 1.0),
        (lines(6), lines(5), 1.0),
        (lines(7), lines(5), 0.0),
        (lines(5), lines(5, 20), 2 / 3),
        (lines(5, 20), lines(5), 2 / 3),
        (lines(), lines(), 1.0),
        (lines(), lines(5), 0.0),
        (lines(5), lines(), 0.0),
    ],
)
def test_f1_by_hand(found: Edges, wanted: Edges, expected: float) -> None:
    """Beside by one pixel is a hit, by two is none; half of the lines has precision 1 and recall 1/2."""
    assert edges.f1(found, wanted) == pytest.approx([expected])


def test_pictures_are_scored_one_by_one() -> None:
    found, wanted = np.concatenate([lines(5), lines(20)]), np.concatenate([lines(5), lines(5)])
    assert edges.f1(found, wanted).tolist() == [1, 0]


def test_edges_of_a_square() -> None:
    picture = np.zeros((1, 32, 32, 3), np.uint8)
    picture[:, 8:24, 8:24] = 255
    found = edges.edges(picture)[0]
    assert found.shape == (32, 32) and found.dtype == np.bool_
    assert 40 < found.sum() < 80 and not found[12:20, 12:20].any() and not found[:6].any()


def test_scenes_without_edges_are_left_out() -> None:
    """They would be followed by anything flat."""
    flat = scene(0)
    object.__setattr__(flat, "pixels", np.full_like(flat.pixels, 90))
    scenes = [flat, scene(1), scene(2, quality="noisy"), scene(3, quality="sharp"), scene(4)]
    assert edges.with_edges(scenes, 2) == [scenes[1], scenes[3]]


def test_figures() -> None:
    """A ControlNet that copies its scenes reaches both goals; one that is not followed neither of its own."""
    scenes = [scene(number) for number in range(3)]
    copies = np.stack([one.pixels for one in scenes])
    wanted, flat = edges.edges(copies), np.full_like(copies, 90)
    ours, without, gain = edges.figures(Followed(scenes, wanted, copies, flat))
    assert (ours.value.mean, without.value.mean, gain.value.mean) == (1, 0, 1)
    assert ours.reached and without.reached
    ours, without, gain = edges.figures(Followed(scenes, wanted, flat, copies))
    assert not ours.reached and not without.reached and gain.value.mean == -1
