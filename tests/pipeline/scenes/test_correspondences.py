from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scenes.compose import compose
from pipeline.scenes.correspondences import shared_things, transfer, visible
from pipeline.scenes.cutouts import find_cutouts
from tests.stamps import make_stamps

thing = st.fixed_dictionaries(
    {
        "cutout": st.just("a.png"),
        "box_xywh": st.tuples(
            st.integers(-20, 60), st.integers(-20, 60), st.integers(8, 99), st.integers(8, 99)
        ),
        "flipped": st.booleans(),
    }
)
points = st.lists(st.tuples(st.floats(0, 64), st.floats(0, 64)), min_size=1, max_size=8).map(np.array)


@given(points, thing, thing, thing)
def test_there_and_back_and_by_a_third(
    where: np.ndarray, a: dict[str, Any], b: dict[str, Any], c: dict[str, Any]
) -> None:
    assert np.allclose(transfer(transfer(where, a, b), b, a), where)
    assert np.allclose(transfer(transfer(where, a, b), b, c), transfer(where, a, c))
    assert np.allclose(transfer(where, a, a), where)


def test_the_same_colours_are_found(tmp_path: Path) -> None:
    """In real scenes, points that correspond show the same part of the cut-out, which has a gradient."""
    cutouts = find_cutouts(make_stamps(tmp_path))
    scenes = [compose(cutouts, 128, np.random.default_rng(seed)) for seed in range(80)]
    sharp = [scene for scene in scenes if scene.quality == "plain"]
    objects = [[one.document() for one in scene.things] for scene in sharp]
    differences = []
    for first in range(len(sharp)):
        for second in range(first):
            for here, there in shared_things(objects[first], objects[second]):
                row, column = np.nonzero(sharp[first].instances == here + 1)
                where = np.stack([column, row], axis=1)[::50].astype(np.float64) + 0.5
                found = transfer(where, objects[first][here], objects[second][there])
                seen = visible(found, sharp[second].instances, there)
                a, b = where[seen].astype(int), found[seen].astype(int)
                colour = sharp[first].pixels[a[:, 1], a[:, 0]].astype(int)
                other = sharp[second].pixels[b[:, 1], b[:, 0]].astype(int)
                # Things differ in brightness as a whole; what must agree is where on the gradient a point lies.
                if len(a) > 10:
                    differences.append(np.corrcoef(colour[:, 0], other[:, 0])[0, 1])
    assert len(differences) > 20
    # Where little is seen, its rim has a share of the ground; unflipped points of flipped things would give -1.
    assert np.min(differences) > 0
    assert np.median(differences) > 0.99


def test_visible() -> None:
    instances = np.zeros((4, 6), np.uint8)
    instances[1, 2], instances[2, 2] = 1, 2
    where = np.array([[2.5, 1.5], [2.5, 2.5], [0.5, 0.5], [-3.0, 1.5], [2.5, 4.0]])
    assert visible(where, instances, 0).tolist() == [True, False, False, False, False]
    assert visible(where, instances, 1).tolist() == [False, True, False, False, False]


def test_other_cutouts_have_no_points_in_common() -> None:
    a = {"cutout": "a.png", "box_xywh": [0, 0, 8, 8], "flipped": False}
    with pytest.raises(ValueError, match=r"no point of 'a.png' is on 'b.png'"):
        transfer(np.zeros((1, 2)), a, a | {"cutout": "b.png"})
