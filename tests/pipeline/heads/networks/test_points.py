"""Points mean the same place at every resolution."""

from __future__ import annotations

import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from pipeline.heads.networks.alignment import resized
from pipeline.heads.networks.points import centres, sample_points


@settings(max_examples=30, deadline=None)
@given(*(st.integers(1, 7) for _ in range(2)), *(st.integers(7, 20) for _ in range(2)))
def test_sampling_is_enlargement(h: int, w: int, height: int, width: int) -> None:
    """Also beyond the outermost centres of cells, where zeros might be mixed in."""
    maps = torch.randn(2, 3, h, w, generator=torch.Generator().manual_seed(h))
    found = sample_points(maps, centres((height, width)).expand(2, -1, -1))
    enlarged = resized(maps, (height, width)).flatten(2).transpose(1, 2)
    torch.testing.assert_close(found, enlarged, atol=1e-5, rtol=0)


def test_x_comes_before_y() -> None:
    assert centres((2, 4)).tolist()[:3] == [[0.125, 0.25], [0.375, 0.25], [0.625, 0.25]]
    maps = torch.arange(8.0).view(1, 1, 2, 4)
    assert sample_points(maps, torch.tensor([[[0.875, 0.25]]])).item() == 3


def test_each_image_has_its_own_points() -> None:
    maps = torch.arange(8.0).view(2, 1, 1, 4)
    points = torch.tensor([[[0.125, 0.5]], [[0.875, 0.5]]])
    assert sample_points(maps, points).flatten().tolist() == [0, 7]
