from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.scenes.compose import _laid, compose
from pipeline.scenes.correspondences import shared_things, transfer, visible
from pipeline.scenes.cutouts import Cutout, resized

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


def test_the_same_places_are_found() -> None:
    """In composed scenes, over flips and things in front: a cut-out that tells where each of its pixels is."""
    v, u = np.mgrid[0:180, 0:180] / 179.0
    told = np.stack([40 + 180 * u, 40 + 180 * v, np.zeros_like(u), np.full_like(u, 255)], axis=2)
    cutout = Cutout("a.png", 1, "map", "red", np.rint(told).astype(np.uint8), False)
    scenes = [_undisturbed(cutout, seed) for seed in range(12)]
    compared, flips = 0, set()
    for pixels, things, instances in scenes:
        for other_pixels, others, other_instances in scenes:
            for here, there in shared_things(things, others):
                row, column = np.nonzero(instances == here + 1)
                where = np.stack([column, row], axis=1)[::37].astype(np.float64) + 0.5
                found = transfer(where, things[here], others[there])
                seen = visible(found, other_instances, there)
                a, b = np.floor(where[seen]).astype(int), np.floor(found[seen]).astype(int)
                difference = pixels[a[:, 1], a[:, 0], :2] - other_pixels[b[:, 1], b[:, 0], :2]
                step = 180 / min(*things[here]["box_xywh"][2:], *others[there]["box_xywh"][2:])
                # Half a pixel of rounding in each scene; the outermost are mixed with what lies behind them.
                assert np.abs(difference).max(initial=0) <= 1.6 * step
                compared += len(a)
                flips.add(things[here]["flipped"] != others[there]["flipped"])
    assert compared > 1000
    assert flips == {True, False}


def _undisturbed(cutout: Cutout, seed: int) -> tuple[np.ndarray, list[dict[str, Any]], np.ndarray]:
    """A scene's pixels without its changes of brightness and quality, its objects and its instances."""
    scene = compose([cutout], 128, np.random.default_rng(seed))
    placed = []
    for thing in scene.things:
        _, _, width, height = thing.box
        rgba = resized(cutout.rgba.astype(np.float32), width, height)
        placed.append((thing, rgba[:, ::-1] if thing.flipped else rgba))
    pixels, instances = _laid(np.zeros((128, 128, 3), np.float32), placed)
    assert np.array_equal(instances, scene.instances)
    return pixels, [thing.document() for thing in scene.things], instances


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
