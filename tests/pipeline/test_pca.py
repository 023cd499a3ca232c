"""Colours that mean something: planted structure is found, and nothing about them is left to chance."""

from __future__ import annotations

import numpy as np
import pytest
from numpy.typing import NDArray

from pipeline import pca


def planted(scales: tuple[float, ...] = (9.0, 3.0, 1.0), channels: int = 8) -> NDArray[np.float32]:
    """Maps [4, C, 6, 5] that vary along known channels by known amounts, with an offset and a little noise."""
    rng = np.random.default_rng(0)
    maps = 5 + 0.01 * rng.standard_normal((4, channels, 6, 5))
    for channel, scale in enumerate(scales):
        maps[:, channel + 2] += scale * rng.standard_normal((4, 6, 5))
    return maps.astype(np.float32)


def test_finds_directions_by_variance() -> None:
    """Red is the direction of most variance, then green, then blue."""
    basis = pca.fit(planted())
    assert np.abs(basis.components).argmax(1).tolist() == [2, 3, 4]
    np.testing.assert_allclose(np.abs(basis.components).max(1), 1, atol=0.01)
    np.testing.assert_allclose(basis.mean, planted().mean((0, 2, 3)), rtol=1e-5)


def test_signs_are_fixed() -> None:
    """A sign left to the solver would swap colours between runs and libraries."""
    maps = planted()
    basis, mirrored = pca.fit(maps), pca.fit(-maps)
    assert (basis.components[np.arange(3), np.abs(basis.components).argmax(1)] > 0).all()
    np.testing.assert_allclose(basis.components, mirrored.components, atol=1e-6)


def test_one_basis_for_all_maps() -> None:
    """Equal features in two images have equal colours, whatever else the images show."""
    maps = planted()
    maps[3, :, 0, 0] = maps[0, :, 2, 2]
    colours = pca.fit(maps).colours(maps)
    assert colours.shape == (4, 6, 5, 3)
    assert colours.dtype == np.uint8
    assert (colours[3, 0, 0] == colours[0, 2, 2]).all()
    assert len(np.unique(colours[..., 0])) > 50


def test_massive_activations_do_not_take_the_range() -> None:
    """Single huge values are usual in these networks; scaled by them, all else would be one grey."""
    maps = planted()
    maps[0, 2, 0, 0] = 3000
    assert np.ptp(pca.fit(maps).colours(maps)[1:, ..., 0].astype(int)) == 255


@pytest.mark.parametrize("channels", [1, 2])
def test_fewer_channels_than_colours(channels: int) -> None:
    """What is not there stays black."""
    maps = planted((2.0,), 8)[:, 2 : 2 + channels]
    colours = pca.fit(maps).colours(maps)
    assert not colours[..., channels:].any()
    assert colours[..., 0].any()


def test_maps_that_do_not_vary() -> None:
    """A dead tap is one colour, without a division by zero."""
    colours = pca.fit(np.full((2, 8, 3, 3), 7, np.float16)).colours(np.full((2, 8, 3, 3), 7, np.float16))
    assert not colours.any()


def test_float16_does_not_overflow() -> None:
    """Products of stored values leave float16's range."""
    maps = (planted() * 300).astype(np.float16)
    assert np.isfinite(pca.fit(maps).components).all()
    assert np.ptp(pca.fit(maps).colours(maps)) == 255
