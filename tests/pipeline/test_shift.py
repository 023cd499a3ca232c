"""Eq. 1 and Eq. 2 hold what the paper says of them, for any features."""

from __future__ import annotations

from random import Random

import numpy as np
import pytest
import torch
from hypothesis import assume, given, settings
from hypothesis import strategies as st
from torch import Tensor

from pipeline.shift import laplacian_norms, relative_shift, score, shift

SHAPES = st.tuples(*(st.integers(1, most) for most in (3, 4, 6, 6)))


@st.composite
def features(draw: st.DrawFn, shape: tuple[int, ...] | None = None) -> Tensor:
    """Random maps, of any magnitude that features have."""
    size = draw(SHAPES) if shape is None else shape
    rng = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    return torch.from_numpy(rng.standard_normal(size) * 10.0 ** draw(st.integers(-3, 3)))


@st.composite
def pairs(draw: st.DrawFn) -> tuple[Tensor, Tensor]:
    """Two of one shape."""
    first = draw(features())
    return first, draw(features(tuple(first.shape)))


@settings(deadline=None)
@given(features(), st.floats(-1e4, 1e4))
def test_no_shift(maps: Tensor, offset: float) -> None:
    """Neither of features themselves nor of features that are only brighter, channel by channel."""
    assert (shift(maps, maps) == 0).all()
    brighter = maps + offset * torch.arange(1, maps.shape[1] + 1)[:, None, None]
    scale = float(laplacian_norms(maps).sum()) + abs(offset) * maps.numel()
    assert (shift(brighter, maps) <= 1e-11 * scale).all()


@settings(deadline=None)
@given(SHAPES, st.floats(-1e30, 1e30, allow_subnormal=False))
def test_a_constant_map_has_no_laplacian(shape: tuple[int, ...], value: float) -> None:
    """Exactly, borders included: padding with zeros would make an edge all around each map."""
    assert (laplacian_norms(torch.full(shape, value)) == 0).all()


@settings(deadline=None)
@given(pairs(), st.randoms(use_true_random=False))
def test_channels_have_no_order(pair: tuple[Tensor, Tensor], random: Random) -> None:
    maps, reference = pair
    order = list(range(maps.shape[1]))
    random.shuffle(order)
    torch.testing.assert_close(shift(maps[:, order], reference), shift(maps, reference))


@settings(deadline=None)
@given(pairs(), st.floats(0.01, 100))
def test_scales_with_its_features(pair: tuple[Tensor, Tensor], factor: float) -> None:
    """And its relative form does not scale at all."""
    maps, reference = pair
    torch.testing.assert_close(shift(factor * maps, factor * reference), factor * shift(maps, reference))
    assume((laplacian_norms(reference).sum((1, 2)) > 0).all())
    torch.testing.assert_close(
        relative_shift(factor * maps, factor * reference), relative_shift(maps, reference)
    )


@settings(deadline=None)
@given(pairs())
def test_symmetric_and_not_negative(pair: tuple[Tensor, Tensor]) -> None:
    maps, reference = pair
    assert (shift(maps, reference) >= 0).all()
    assert torch.equal(shift(maps, reference), shift(reference, maps))


@settings(deadline=None)
@given(pairs())
def test_images_do_not_mix(pair: tuple[Tensor, Tensor]) -> None:
    """A sum over the batch would look right on one image."""
    maps, reference = pair
    alone = torch.cat([shift(maps[i : i + 1], reference[i : i + 1]) for i in range(len(maps))])
    torch.testing.assert_close(shift(maps, reference), alone)


@settings(deadline=None)
@given(pairs())
def test_scores(pair: tuple[Tensor, Tensor]) -> None:
    """Eq. 2: 1 for an exact match, 0 for the anchor's own shift, less for more."""
    anchor = shift(*pair)
    assume((anchor > 0).all())
    assert (score(torch.zeros_like(anchor), anchor) == 1).all()
    assert (score(anchor, anchor) == 0).all()
    assert (score(2 * anchor, anchor) == -1).all()


def test_by_hand() -> None:
    """One bright cell in the middle: itself -4, its neighbours 1 each; two equal channels have sqrt(2) of that."""
    maps = torch.zeros(1, 2, 3, 3)
    maps[:, :, 1, 1] = 1
    wanted = torch.tensor([[0, 1.0, 0], [1, 4, 1], [0, 1, 0]]) * 2**0.5
    torch.testing.assert_close(laplacian_norms(maps)[0], wanted)
    torch.testing.assert_close(shift(maps, torch.zeros(1, 5, 3, 3)), torch.tensor([8 * 2**0.5]))
    torch.testing.assert_close(relative_shift(2 * maps, maps), torch.tensor([1.0]))


def test_half_precision_is_summed_in_float32() -> None:
    """Stored features are float16, whose sums would overflow."""
    maps = (torch.rand(1, 4, 16, 16) * 6e4).half()
    assert shift(maps, torch.zeros_like(maps)).dtype == torch.float32
    assert torch.isfinite(shift(maps, torch.zeros_like(maps))).all()


def test_what_does_not_fit() -> None:
    with pytest.raises(ValueError, match=r"\[4, 8, 8\]; expected \[B, C, h, w\]"):
        laplacian_norms(torch.zeros(4, 8, 8))
    with pytest.raises(ValueError, match=r"= \[1, 8, 8\], their reference \[1, 4, 4\]"):
        shift(torch.zeros(1, 2, 8, 8), torch.zeros(1, 2, 4, 4))
