from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray

from pipeline.gate.readings import READINGS, TapNorms, score
from pipeline.shift import laplacian_norms, shift
from pipeline.shift import score as equation_2
from schemas.gate import Reading

SEEDS = st.integers(0, 2**31)


def features(seed: int, channels: int = 3) -> torch.Tensor:
    return torch.randn(2, channels, 6, 5, generator=torch.Generator().manual_seed(seed))


def norms(values: torch.Tensor) -> NDArray[np.float32]:
    return laplacian_norms(values).numpy()


def plain(seed: int) -> TapNorms:
    clean = features(seed)
    return TapNorms(norms(clean), {200: norms(clean + features(seed + 1))})


@settings(deadline=None)
@given(SEEDS, st.sampled_from(READINGS))
def test_an_identical_feature_scores_1_and_the_anchor_0(seed: int, reading: Reading) -> None:
    of_plain = plain(seed)
    same = score(of_plain.clean, of_plain.clean, of_plain, 200, reading)
    anchor = score(of_plain.noisy[200], of_plain.clean, of_plain, 200, reading)
    np.testing.assert_allclose(same, 1, atol=1e-6)
    np.testing.assert_allclose(anchor, 0, atol=1e-6)


@settings(deadline=None)
@given(SEEDS, SEEDS)
def test_literal_is_the_papers(seed: int, other: int) -> None:
    reference, anchor, feature = features(seed), features(seed) + features(seed + 1), features(other)
    of_plain = TapNorms(norms(reference), {200: norms(anchor)})
    found = score(norms(feature), norms(features(other + 1)), of_plain, 200, "literal")
    expected = equation_2(shift(feature, reference), shift(anchor, reference))
    np.testing.assert_allclose(found, expected.numpy(), rtol=1e-4, atol=1e-4)


@settings(deadline=None)
@given(SEEDS, st.floats(0.1, 10))
def test_a_technique_that_scales_features_has_not_shifted_them(seed: int, factor: float) -> None:
    """By `own` and `shape`; the literal reading takes it for shift."""
    of_plain, feature = plain(seed), features(seed + 5)
    own = features(seed + 6)
    for reading in READINGS:
        before = score(norms(feature), norms(own), of_plain, 200, reading)
        after = score(norms(feature * factor), norms(own * factor), of_plain, 200, reading)
        if reading == "literal":
            if abs(factor - 1) > 0.1:
                assert not np.allclose(before, after, rtol=1e-3)
        else:
            np.testing.assert_allclose(before, after, rtol=1e-3, atol=1e-4)


@settings(deadline=None)
@given(SEEDS, st.sampled_from(READINGS))
def test_neither_signs_nor_the_order_of_channels_matter(seed: int, reading: Reading) -> None:
    of_plain, feature = plain(seed), features(seed + 5)
    turned = -feature[:, [2, 0, 1]]
    own = norms(features(seed + 6))
    one, other = (score(norms(values), own, of_plain, 200, reading) for values in (feature, turned))
    np.testing.assert_allclose(one, other, rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("reading", READINGS)
def test_an_image_without_edges_has_no_score(reading: Reading) -> None:
    flat = np.zeros((1, 6, 5), np.float32)
    found = score(flat, flat, TapNorms(flat, {200: flat}), 200, reading)
    assert not np.isfinite(found).any()
