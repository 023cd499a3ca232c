"""Moments over parts are those of the whole, and a channel that says nothing stays harmless."""

from __future__ import annotations

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.heads.networks.standardisation import Moments, Standardisation


def moments_of(*parts: Tensor) -> Moments:
    moments = Moments()
    for part in parts:
        moments.add(part)
    return moments


def standardised(maps: Tensor) -> Tensor:
    module = Standardisation(maps.shape[1])
    module.take(moments_of(maps))
    return module(maps)


@settings(max_examples=30, deadline=None)
@given(st.lists(st.integers(0, 3), min_size=1, max_size=5).filter(any), st.integers(0, 99))
def test_parts_make_the_whole(sizes: list[int], seed: int) -> None:
    maps = torch.randn(sum(sizes), 3, 4, 2, generator=torch.Generator().manual_seed(seed))
    maps = maps * torch.tensor([1e-3, 1, 1e3])[:, None, None] + 5
    moments = moments_of(*maps.split(sizes))
    torch.testing.assert_close(moments.mean, maps.double().mean((0, 2, 3)))
    torch.testing.assert_close(moments.std, maps.double().std((0, 2, 3), correction=0))


def test_every_channel_has_mean_0_and_deviation_1() -> None:
    scale = torch.tensor([1e-4, 1, 300])[:, None, None]
    found = standardised((torch.randn(8, 3, 6, 6) * scale + 20 * scale).half())
    assert found.dtype == torch.float32
    torch.testing.assert_close(found.mean((0, 2, 3)), torch.zeros(3), atol=1e-4, rtol=0)
    torch.testing.assert_close(found.std((0, 2, 3), correction=0), torch.ones(3), atol=1e-4, rtol=0)


def test_a_mean_far_from_zero_costs_no_precision() -> None:
    """Massive activations are usual: the difference of two sums of squares would be lost in rounding."""
    maps = 3000 + 0.01 * torch.randn(20, 1, 8, 8, dtype=torch.float64)
    assert float(moments_of(*maps.split(1)).std) == pytest.approx(0.01, rel=0.05)


@pytest.mark.parametrize("value", [0.0, 0.1, 3000.1, 1e-8])
def test_a_constant_channel_is_not_blown_up(value: float) -> None:
    """Neither by zero, nor by the rounding of its mean."""
    assert standardised(torch.full((7, 2, 3, 3), value)).abs().max() < 1e-2


def test_rounding_is_not_blown_up() -> None:
    """A channel that is constant but for the last bit of float32 is noise, not a signal."""
    maps = torch.full((4, 1, 3, 3), 3000.1)
    maps[::2] = torch.nextafter(maps[::2], torch.tensor(torch.inf))
    assert standardised(maps).abs().max() < 1e-2


def test_small_values_that_vary_are_no_constants() -> None:
    """Attention features are shares of a softmax over many tokens."""
    found = standardised(1e-7 * torch.rand(8, 1, 6, 6))
    assert float(found.std(correction=0)) == pytest.approx(1, abs=1e-3)


def test_before_it_is_fitted_nothing_changes() -> None:
    maps = torch.randn(2, 3, 4, 4)
    assert torch.equal(Standardisation(3)(maps), maps)


def test_what_cannot_be_taken() -> None:
    with pytest.raises(ValueError, match="no maps to take mean"):
        Standardisation(3).take(moments_of(torch.zeros(0, 3, 4, 4)))
    maps = torch.zeros(2, 3, 4, 4, dtype=torch.float16)
    maps[1, 2, 0, 0] = torch.inf
    with pytest.raises(ValueError, match=r"1 of 3 channels .* not finite, the first one is 2"):
        Standardisation(3).take(moments_of(maps))


def test_a_step_of_float16_is_rounding_too() -> None:
    """Stores hold float16: neighbouring values of a channel far from zero are no feature."""
    maps = torch.tensor([1000.5, 1001.0]).half().repeat(8).view(1, 1, 4, 4)
    moments = Moments()
    moments.add(maps)
    standardise = Standardisation(1)
    standardise.take(moments)
    assert standardise(maps).abs().max() < 0.5
