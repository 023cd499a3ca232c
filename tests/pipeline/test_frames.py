"""Labels and predictions go by the same map as the picture."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from pipeline.decode import decode
from pipeline.frames import Frame
from pipeline.geometry import Fit
from tests.tars import encode

SIZES = st.tuples(st.integers(1, 300), st.integers(1, 300))
FITS: st.SearchStrategy[Fit] = st.sampled_from(["stretch", "crop", "pad"])
FRAMES = st.builds(Frame, SIZES, SIZES, FITS)


@settings(deadline=None)
@given(FRAMES, st.lists(st.tuples(st.floats(-10, 400), st.floats(-10, 400)), max_size=5))
def test_there_and_back(frame: Frame, points: list[tuple[float, float]]) -> None:
    given_ = torch.tensor(points, dtype=torch.float64).reshape(-1, 2)
    torch.testing.assert_close(frame.to_picture(frame.to_image(given_)), given_, rtol=1e-9, atol=1e-6)


def test_what_points_become() -> None:
    """In numbers worked out by hand: 40 x 60 in 64 x 64."""
    point = torch.tensor([15.0, 10.0])
    assert Frame((40, 60), (64, 64)).to_image(point).tolist() == [16, 16]
    assert Frame((40, 60), (64, 64), "crop").to_image(point).tolist() == pytest.approx([8, 16])
    assert Frame((40, 60), (60, 60), "pad").to_image(point).tolist() == [15, 20]


@settings(deadline=None)
@given(FRAMES)
def test_a_pixel_takes_what_lies_under_its_centre(frame: Frame) -> None:
    """So that a mask and a keypoint on it end up at the same place."""
    height, width = frame.picture
    numbers = np.arange(height * width, dtype=np.int32).reshape(height, width) % 30000
    image = frame.resampled(numbers, -1)
    rows, columns = np.meshgrid(*map(np.arange, frame.image), indexing="ij")
    centres = torch.from_numpy(np.stack([columns, rows], -1) + 0.5)
    x, y = np.moveaxis(frame.to_picture(centres).numpy(), -1, 0)
    inside = (x > 0) & (x < width) & (y > 0) & (y < height)
    assert ((image >= 0) == inside).all()
    # Where a centre falls between two pixels to within rounding, either will do.
    clear = inside & (np.abs(x - x.round()) > 1e-6) & (np.abs(y - y.round()) > 1e-6)
    assert (image[clear] == numbers[y[clear].astype(int), x[clear].astype(int)]).all()


@pytest.mark.parametrize("fit", ["stretch", "crop", "pad"])
def test_masks_go_where_pictures_go(fit: Fit) -> None:
    """Guards against a label beside its picture: a picture that is bright where its mask is 1."""
    marked = np.zeros((48, 80), np.uint8)
    marked[5:21, 20:50] = 1
    data = encode(Image.fromarray(255 * marked).convert("RGB"), "PNG")
    seen = decode(data, (32, 32), 10**6, fit).pixels[0]
    mask = Frame((48, 80), (32, 32), fit).resampled(marked, 2)
    assert ((seen > 127) == (mask == 1)).mean() > 0.98, "edges may fall on either side"
    assert (seen[mask == 2] == 127).all()
