"""Measures of closeness: by hand where a hand can, and what each of them sees and does not see."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline.gate.similarity import (
    Pictures,
    Values,
    colour,
    edge_agreement,
    embedding_similarity,
    load_encoder,
    measures,
    ssim,
)
from tests.tars import pixels

NAMES = ["edge_agreement", "ssim", "colour"]
MEASURES: list[Callable[[Pictures, Pictures], Values]] = [edge_agreement, ssim, colour]


def pictures(*seeds: int, side: int = 48) -> Pictures:
    return np.stack([pixels(side, side, seed) for seed in seeds])


def flat(*values: int, side: int = 32) -> Pictures:
    return np.stack([np.full((side, side, 3), value, np.uint8) for value in values])


def square(left: int) -> Pictures:
    """A white square on black, at some column."""
    found = flat(0)
    found[:, 8:24, left : left + 12] = 255
    return found


def test_all_by_name() -> None:
    found = measures(pictures(1, 2), pictures(1, 3))
    assert list(found) == NAMES
    for name, measure in zip(NAMES, MEASURES, strict=True):
        assert found[name].shape == (2,) and found[name].dtype == np.float64
        assert np.array_equal(found[name], measure(pictures(1, 2), pictures(1, 3)))
        assert found[name][0] == 1 > found[name][1]


@given(st.integers(0, 2**32 - 1), st.integers(0, 2**32 - 1), st.integers(11, 40), st.integers(11, 40))
@settings(max_examples=30, deadline=None)
def test_identical_is_one_the_highest_and_both_sides_are_alike(
    first: int, second: int, height: int, width: int
) -> None:
    one, other = (
        np.random.default_rng(seed).integers(0, 256, (1, height, width, 3), np.uint8)
        for seed in (first, second)
    )
    for measure in MEASURES:
        assert measure(one, one) == pytest.approx([1], abs=1e-12)
        assert measure(one, other) == pytest.approx(measure(other, one), abs=1e-12)
        assert measure(one, other) <= 1


@pytest.mark.parametrize("measure", [ssim, colour])
def test_more_noise_is_further(measure: Callable[[Pictures, Pictures], Values]) -> None:
    clean = np.concatenate([square(4)] * 3).astype(int)
    noise = np.random.default_rng(0).normal(size=clean.shape[1:])
    strengths = np.array([0, 40, 120]).reshape(3, 1, 1, 1)
    noisy = np.clip(clean + strengths * noise, 0, 255).astype(np.uint8)
    found = measure(clean.astype(np.uint8), noisy)
    assert found[0] == 1 and np.all(np.diff(found) < -0.01)


@pytest.mark.parametrize("measure", MEASURES)
def test_each_picture_is_judged_by_itself(measure: Callable[[Pictures, Pictures], Values]) -> None:
    inputs, outputs = pictures(1, 2, 3), pictures(4, 5, 3)
    alone = [measure(inputs[[place]], outputs[[place]])[0] for place in range(3)]
    assert measure(inputs, outputs).tolist() == alone


def test_edges_within_a_pixel_agree() -> None:
    assert edge_agreement(square(8), square(9)) == 1
    assert 0 < edge_agreement(square(8), square(12))[0] < 1
    assert edge_agreement(flat(10, 10), np.concatenate([flat(200), square(8)])).tolist() == [1, 0]


def test_ssim_of_one_window_by_hand() -> None:
    """Wang et al. 2004, eq. 13 to 16, with sums over the window written out."""
    x, y = pictures(1, side=11), pictures(2, side=11)
    offsets = np.arange(11) - 5
    window = np.exp(-(offsets[:, None] ** 2 + offsets**2) / (2 * 1.5**2))
    window /= window.sum()
    a, b = (0.299 * one[0, ..., 0] + 0.587 * one[0, ..., 1] + 0.114 * one[0, ..., 2] for one in (x, y))
    mu_a, mu_b = (window * a).sum(), (window * b).sum()
    var_a, var_b = (window * (a - mu_a) ** 2).sum(), (window * (b - mu_b) ** 2).sum()
    both = (window * (a - mu_a) * (b - mu_b)).sum()
    expected = (2 * mu_a * mu_b + 6.5025) * (2 * both + 58.5225)
    expected /= (mu_a**2 + mu_b**2 + 6.5025) * (var_a + var_b + 58.5225)
    assert ssim(x, y) == pytest.approx([expected], abs=1e-9)


def test_ssim_sees_structure_more_than_brightness() -> None:
    picture = pictures(1).astype(int)
    brighter = np.clip(picture + 20, 0, 255).astype(np.uint8)
    shuffled = np.random.default_rng(0).permutation(picture.reshape(-1, 3)).reshape(picture.shape)
    plain = picture.astype(np.uint8)
    assert ssim(plain, brighter) > 0.8 and ssim(plain, shuffled.astype(np.uint8)) < 0.3


def test_colours_by_hand() -> None:
    """Black and white are 100 apart; a quarter of the cells counts a quarter."""
    assert colour(flat(0), flat(255)) == pytest.approx([0], abs=1e-3)
    corner = flat(0)
    corner[:, :16, :16] = 255
    assert colour(flat(0), corner) == pytest.approx([0.75], abs=1e-3)


def test_colours_are_those_of_their_place_and_not_of_details() -> None:
    halves, stripes = flat(0), flat(0)
    halves[:, :, :16] = (200, 30, 30)
    assert colour(halves, halves[:, :, ::-1]) < 0.6
    stripes[:, :, ::2] = (200, 30, 30)
    assert colour(stripes, np.roll(stripes, 1, axis=2)) == pytest.approx([1], abs=1e-6)


def test_luma_is_blind_to_what_colour_sees() -> None:
    """A red and a grey of the same luma."""
    red, grey = flat(0), flat(60)
    red[..., 0] = 201
    assert ssim(red, grey) > 0.99 and edge_agreement(red, grey) == 1 and colour(red, grey) < 0.5


@pytest.mark.parametrize("measure", MEASURES)
def test_what_is_no_pair_of_pictures(measure: Callable[[Any, Any], Values]) -> None:
    one = flat(0)
    with pytest.raises(
        ValueError, match=r"inputs are \[1, 32, 32, 3\], outputs \[2, 32, 32, 3\]; pictures are"
    ):
        measure(one, flat(0, 0))
    with pytest.raises(
        ValueError, match=r"pictures are float64 \[1, 32, 32, 3\]; they must be uint8 \[n, H, W"
    ):
        measure(one, one.astype(np.float64))
    with pytest.raises(ValueError, match=r"pictures are uint8 \[1, 3, 32, 32\]; they must be"):
        measure(one.transpose(0, 3, 1, 2), one)


def test_pictures_smaller_than_a_window() -> None:
    with pytest.raises(
        ValueError, match=r"pictures of 10 x 10 pixels; SSIM looks through windows of 11 x 11"
    ):
        ssim(flat(0, side=10), flat(0, side=10))


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image encoder with random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=24,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=32,
        patch_size=8,
        projection_dim=16,
    )
    folder = tmp_path_factory.mktemp("image-encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def test_embeddings_as_transformers_has_them(encoder: Path) -> None:
    """Of more pictures than one pass takes."""
    inputs, outputs = pictures(*range(18)), pictures(*range(17), 40)
    outputs[0] = 255 - inputs[0]
    found = embedding_similarity(inputs, outputs, load_encoder(encoder))
    assert found.shape == (18,) and found.dtype == np.float64
    assert found[1:17] == pytest.approx(np.ones(16)) and max(found[0], found[17]) < 1
    network: Any = CLIPVisionModelWithProjection.from_pretrained(encoder)
    processor = CLIPImageProcessorPil(size={"shortest_edge": 32}, crop_size=32)
    with torch.no_grad():
        first, second = (
            network(**processor(Image.fromarray(one[0]), return_tensors="pt")).image_embeds
            for one in (inputs, outputs)
        )
    assert found[0] == pytest.approx(float(torch.cosine_similarity(first, second)), abs=1e-5)


def test_an_encoder_without_weights(tmp_path: Path) -> None:
    with pytest.raises((ValueError, OSError), match=r"model\.safetensors|config"):
        load_encoder(tmp_path)
