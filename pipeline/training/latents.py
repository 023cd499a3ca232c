"""Images encoded once for all steps of training."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

import torch
from diffusers import AutoencoderKL
from fsspec.implementations.local import LocalFileSystem
from safetensors.torch import load_file, save
from torch import Tensor

from pipeline import storage
from pipeline.training.images import Images, as_input
from pipeline.training.precision import autocast, normal


@dataclass(frozen=True)
class Latents:
    """Posteriors of images: float16 [n, c, h, w] each."""

    mean: Tensor
    std: Tensor

    def __len__(self) -> int:
        return len(self.mean)

    def to(self, device: torch.device) -> Latents:
        """The same ones there."""
        return Latents(self.mean.to(device), self.std.to(device))

    def draw(self, chosen: Tensor, generator: torch.Generator) -> Tensor:
        """A sample of the posteriors `chosen` [B], scaled by 1: float32 [B, c, h, w], where the posteriors are."""
        chosen = chosen.to(self.mean.device)
        mean, std = self.mean[chosen].float(), self.std[chosen].float()
        return mean + std * normal(mean.shape, generator, mean.device)


@torch.no_grad()
def encode(vae: AutoencoderKL, images: Images, cache: Path, batch_size: int = 64) -> Latents:
    """Encode images, or read from `cache` what was encoded before: the caller names it by what it depends on."""
    if cache.exists():
        return Latents(**load_file(cache))
    means, stds = [], []
    for batch in images.pixels.split(batch_size):
        with autocast(vae.device):
            posterior = vae.encode(as_input(batch).to(vae.device)).latent_dist
        means.append(posterior.mean.to(torch.float16).cpu())
        stds.append(posterior.std.to(torch.float16).cpu())
    latents = Latents(torch.cat(means), torch.cat(stds))
    data = save({"mean": latents.mean.contiguous(), "std": latents.std.contiguous()})
    storage.put(LocalFileSystem(), str(cache.absolute()), data)
    return latents
