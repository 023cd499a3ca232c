"""Pictures of prompts, while a network is in training."""

from __future__ import annotations

from collections.abc import Callable
from typing import Final

import torch
from diffusers import AutoencoderKL, DDIMScheduler
from torch import Tensor

from pipeline.training.precision import autocast

SCHEDULE: Final = {
    "num_train_timesteps": 1000,
    "beta_start": 0.00085,
    "beta_end": 0.012,
    "beta_schedule": "scaled_linear",
    "prediction_type": "v_prediction",
    "set_alpha_to_one": False,
    "steps_offset": 1,
}
"""Stable Diffusion's noise, with v for the noise as what is predicted (Salimans and Ho 2022): a small network learns
the layout of a picture earlier so."""

_STEPS: Final = 25
_GUIDANCE: Final = 3.0

Predict = Callable[[Tensor, Tensor], Tensor]
"""Noisy latents [B, c, h, w] and a timestep to v [B, c, h, w]."""


@torch.no_grad()
def generate(
    predict: Predict,
    vae: AutoencoderKL,
    shape: tuple[int, ...],
) -> Tensor:
    """Images [n, 3, H, W] in [-1, 1] by DDIM (Song et al. 2021) with guidance (Ho and Salimans 2022).

    Args:
        predict: of 2n latents, the first n with their prompt, the others with the empty one.
        vae: decodes.
        shape: [n, c, h, w] of the latents.
    """
    scheduler = DDIMScheduler(**SCHEDULE, clip_sample=False)
    scheduler.set_timesteps(_STEPS)
    latents = torch.randn(shape, generator=torch.Generator().manual_seed(0)).to(vae.device)
    for time in scheduler.timesteps:
        with autocast(vae.device):
            prompted, blank = predict(torch.cat([latents, latents]), time).float().chunk(2)
        guided = blank + _GUIDANCE * (prompted - blank)
        latents = scheduler.step(guided, time, latents).prev_sample
    decoded = [vae.decode(one).sample.float() for one in latents.split(8)]
    return torch.cat(decoded).cpu()
