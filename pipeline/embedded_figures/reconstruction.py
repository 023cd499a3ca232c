"""What the VAE loses: PSNR of its reconstructions, over all scenes and by their quality."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import torch
from diffusers import AutoencoderKL
from numpy.typing import NDArray
from torch import Tensor

from pipeline import device as devices
from pipeline.backbone import load_module, to_unit_range
from pipeline.embedded_figures.features import BATCH
from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.latents import pixels_of
from pipeline.embedded_figures.scenes import Scene
from pipeline.embedded_figures.statistics import interval
from pipeline.scenes.captions import QUALITY_WORDS

GOAL = Goal("at least", 28.0)


@torch.inference_mode()
def reconstructed(backbone: Path, scenes: Sequence[Scene]) -> Tensor:
    """Scenes through the VAE and back, by the mean of the posterior: uint8 [scenes, 3, H, W]."""
    device = torch.device(devices.choose("auto"))
    # A `Backbone` has no decoder, which features do not need.
    vae = load_module(AutoencoderKL, backbone / "vae", dtype=torch.float32, device=device)
    parts = []
    for start in range(0, len(scenes), BATCH):
        images = to_unit_range(pixels_of(scenes[start : start + BATCH]).to(device))
        decoded = vae.decode(vae.encode(images).latent_dist.mean).sample
        parts.append(((decoded + 1) * 127.5).round().clamp(0, 255).to(torch.uint8).cpu())
    return torch.cat(parts)


def psnr(images: Tensor, originals: Tensor) -> NDArray[np.float64]:
    """Peak signal to noise ratio of each image in dB, from two tensors uint8 [n, 3, H, W]; infinite where equal."""
    error = (images.double() - originals.double()).square().mean((1, 2, 3))
    return (10 * torch.log10(255.0**2 / error)).numpy()


def figures(scenes: Sequence[Scene], images: Tensor) -> list[Figure]:
    """PSNR of `reconstructed` images, overall and for each quality that the scenes have."""
    found = psnr(images, pixels_of(scenes))
    of = np.array([scene.quality for scene in scenes])
    overall = Figure("VAE reconstruction, PSNR", interval(found), "dB", GOAL)
    return [
        overall,
        *(
            Figure(f"VAE reconstruction, PSNR, {quality} scenes", interval(found[of == quality]), "dB")
            for quality in QUALITY_WORDS
            if (of == quality).any()
        ),
    ]
