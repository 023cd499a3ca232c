"""PSNR by hand, and a VAE that has a decoder."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from pipeline import embedded
from pipeline.embedded_figures import reconstruction
from pipeline.embedded_figures.latents import pixels_of
from pipeline.embedded_figures.scenes import read_scenes
from tests.evaluation_scenes import scene


def test_psnr_by_hand() -> None:
    """Every pixel off by 5: 10 log10(255^2 / 25)."""
    images = torch.full((2, 3, 8, 8), 100, dtype=torch.uint8)
    other = images.clone()
    other[0] += 5
    found = reconstruction.psnr(other, images)
    assert found[0] == pytest.approx(34.151, abs=1e-3) and np.isinf(found[1])


def test_the_embedded_vae_reconstructs() -> None:
    """Far better than a wrong scale, a flipped range or another picture would: those are below 15 dB."""
    scenes = read_scenes("embedded", 3)
    images = reconstruction.reconstructed(Path(embedded.BACKBONE), scenes)
    assert images.dtype == torch.uint8 and images.shape == (3, 3, 128, 128)
    assert (reconstruction.psnr(images, pixels_of(scenes)) > 18).all()


def test_figures_by_quality() -> None:
    scenes = [scene(0, quality="sharp"), scene(1, quality="blurry"), scene(2, quality="sharp")]
    images = pixels_of(scenes)
    for place, error in enumerate((1, 10, 1)):
        images[place] = images[place].clamp(0, 200) + error
    scenes_psnr = reconstruction.psnr(images, pixels_of(scenes))
    overall, sharp, blurry = reconstruction.figures(scenes, images)
    assert overall.goal is not None and overall.value.mean == pytest.approx(scenes_psnr.mean())
    assert sharp.what.endswith("sharp scenes") and sharp.value.n == 2
    assert sharp.value.mean == pytest.approx(scenes_psnr[[0, 2]].mean())
    assert blurry.what.endswith("blurry scenes") and blurry.value.mean == pytest.approx(scenes_psnr[1])
