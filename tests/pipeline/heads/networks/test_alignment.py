"""Maps of several resolutions, brought to one."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.heads.networks.alignment import align, resized

SIDES = st.tuples(st.integers(1, 9), st.integers(1, 9))


@settings(max_examples=50, deadline=None)
@given(st.lists(SIDES, min_size=1, max_size=4), SIDES)
def test_constants_stay(sides: list[tuple[int, int]], size: tuple[int, int]) -> None:
    """Whatever grows or shrinks: borders must not fade, and channels keep their order."""
    maps = [torch.full((2, place + 1, *one), float(place)) for place, one in enumerate(sides)]
    expected = [float(place) for place in range(len(sides)) for _ in range(place + 1)]
    found = align(maps, size)
    assert found.shape == (2, len(expected), *size)
    torch.testing.assert_close(found, torch.tensor(expected)[:, None, None].expand_as(found))


def test_the_finest_is_the_default_and_is_not_changed() -> None:
    fine = torch.randn(2, 3, 2, 8, 4)
    found = align([torch.randn(2, 3, 1, 4, 2), fine])
    assert found.shape == (2, 3, 3, 8, 4)
    assert torch.equal(found[:, :, 1:], fine)


def test_edges_of_the_image_stay_where_they_are() -> None:
    """A step between two halves stays in the middle, as corners that are aligned would not leave it."""
    found = resized(torch.tensor([[[0.0, 0.0, 1.0, 1.0]]]), (1, 8))
    assert found.flatten().tolist() == [0, 0, 0, 0.25, 0.75, 1, 1, 1]


def test_what_shrinks_is_averaged() -> None:
    """Guards against cells that are skipped: a single bright one in 8 x 8 must be seen in any of 2 x 2."""
    bright = torch.zeros(64, 1, 8, 8)
    bright.view(64, 64).fill_diagonal_(1)
    assert (resized(bright, (2, 2)).sum((1, 2, 3)) > 0.01).all()


def test_stored_halves_become_float32() -> None:
    assert align([torch.ones(1, 1, 2, 2, dtype=torch.float16)]).dtype == torch.float32


def test_no_maps() -> None:
    with pytest.raises(ValueError, match="no map to align"):
        align([])
