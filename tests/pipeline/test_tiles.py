"""Tiles: they cover, they overlap, and laid together they give back the whole."""

from __future__ import annotations

import itertools
import math
import random
from dataclasses import dataclass

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.geometry import Size
from pipeline.tiles import Blend, alignment, places


@dataclass
class Case:
    image: Size
    tile: Size
    overlap: int
    step: int


@st.composite
def cases(draw: st.DrawFn) -> Case:
    """Pictures of up to 12 steps a side, with tiles for which there are places."""
    step = draw(st.sampled_from([8, 16, 64]))
    tile = (draw(st.integers(2, 6)), draw(st.integers(2, 6)))
    image = tuple(side + draw(st.integers(0, 6)) for side in tile)
    overlap = draw(st.integers(0, (min(tile) - 1) * step))
    return Case((image[0] * step, image[1] * step), (tile[0] * step, tile[1] * step), overlap, step)


@given(cases())
def test_tiles_cover_the_picture_and_overlap_as_asked(case: Case) -> None:
    found = places(case.image, case.tile, case.overlap, case.step)
    assert found == sorted(set(found)), "row by row"
    for axis in (0, 1):
        starts = sorted({place[axis] for place in found})
        assert starts[0] == 0 and starts[-1] + case.tile[axis] == case.image[axis]
        assert not any(start % case.step for start in starts)
        gaps = [after - before for before, after in itertools.pairwise(starts)]
        assert all(0 < gap <= case.tile[axis] - case.overlap for gap in gaps)
        assert not gaps or max(gaps) - min(gaps) <= case.step, "evenly spread"
        reach = (case.tile[axis] - case.overlap) // case.step * case.step
        assert len(gaps) == math.ceil((case.image[axis] - case.tile[axis]) / reach), "and no more than needed"
    assert len(found) == len({place[0] for place in found}) * len({place[1] for place in found})


def blend(case: Case, whole: torch.Tensor, order: list[tuple[int, int]] | None = None) -> torch.Tensor:
    """A known map of the whole picture, cut into tiles and laid together."""
    cell = case.image[0] // whole.shape[2]
    height, width = (side // cell for side in case.tile)
    blending = Blend(case.image, case.tile, case.overlap, case.step)
    for place in order or places(case.image, case.tile, case.overlap, case.step):
        top, left = (start // cell for start in place)
        blending.add(whole[:, :, top : top + height, left : left + width], place)
    return blending.whole()


@settings(deadline=None)
@given(cases(), st.sampled_from([1, 2, 4]), st.integers(0, 2**31), st.randoms(use_true_random=False))
def test_the_parts_of_a_whole_give_it_back(
    case: Case, finer: int, seed: int, shuffler: random.Random
) -> None:
    cell = case.step // finer
    shape = (2, 3, case.image[0] // cell, case.image[1] // cell)
    whole = torch.randn(shape, generator=torch.Generator().manual_seed(seed))
    found = blend(case, whole)
    assert found.dtype == torch.float32 and found.shape == whole.shape
    assert torch.allclose(found, whole, rtol=1e-6, atol=0)
    order = places(case.image, case.tile, case.overlap, case.step)
    shuffler.shuffle(order)
    assert torch.allclose(blend(case, whole, order), found, rtol=1e-6, atol=0)


def test_overlaps_fade_linearly() -> None:
    """Two tiles of four cells, of which two are shared: 0 fades into 1 by quarters."""
    blending = Blend((8, 48), (8, 32), 16, 8)
    blending.add(torch.zeros(1, 1, 1, 4), (0, 0))
    blending.add(torch.ones(1, 1, 1, 4), (0, 16))
    assert blending.whole().flatten().tolist() == [0, 0, 0.25, 0.75, 1, 1]


def test_what_one_tile_has_is_kept_bit_by_bit() -> None:
    value = torch.randn(1, 2, 4, 4)
    blending = Blend((32, 64), (32, 32), 0, 8)
    blending.add(value, (0, 0))
    blending.add(-value, (0, 32))
    assert torch.equal(blending.whole(), torch.cat([value, -value], dim=3))


def test_a_tile_that_is_not_finite_spoils_only_its_own_part() -> None:
    """In half precision an activation may overflow: the row is refused later, by what is stored."""
    blending = Blend((8, 48), (8, 32), 16, 8)
    blending.add(torch.full((1, 1, 1, 4), torch.inf, dtype=torch.float16), (0, 0))
    blending.add(torch.ones(1, 1, 1, 4, dtype=torch.float16), (0, 16))
    assert torch.isfinite(blending.whole()).flatten().tolist() == [False] * 4 + [True] * 2


def test_every_tile_is_added_once() -> None:
    blending = Blend((8, 48), (8, 32), 16, 8)
    blending.add(torch.zeros(1, 1, 1, 4), (0, 0))
    with pytest.raises(AssertionError, match=r"tiles at \[\(0, 16\)\] are missing"):
        blending.whole()
    with pytest.raises(AssertionError, match=r"\(0, 0\) is no place of a tile, or was added before"):
        blending.add(torch.zeros(1, 1, 1, 4), (0, 0))


def test_tiles_align_with_the_cells_of_every_map() -> None:
    assert alignment((512, 1024), [(64, 128), (32, 64), (8, 16)]) == 64
    assert alignment((512, 1024), [(64, 128)]) == 8
    assert alignment((96, 96), [(12, 12), (2, 2)]) == 48
    with pytest.raises(ValueError, match=r"image_size \[72, 64\] is no whole number of pixels for each cell"):
        alignment((72, 64), [(9, 8), (5, 4)])


@pytest.mark.parametrize(
    ("image", "tile", "overlap", "message"),
    [
        ((512, 1000), (256, 256), 32, r"image_size is \[512, 1000\] and tiles.size \[256, 256\]; make all"),
        (
            (512, 512),
            (256, 200),
            32,
            r"multiples of 64 pixels, but image_size is \[512, 512\] and tiles.size",
        ),
        ((512, 512), (128, 128), 65, r"none could follow the first; allowed is an overlap of at most 64"),
        ((512, 512), (64, 64), 8, r"of \[64, 64\] with overlap 8 none could follow .* overlap of at most 0"),
    ],
)
def test_what_cannot_be_aligned_is_refused(image: Size, tile: Size, overlap: int, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        places(image, tile, overlap, 64)
    with pytest.raises(ValueError, match=message):
        Blend(image, tile, overlap, 64)
