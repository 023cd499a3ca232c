"""The VAE of the embedded backbone: 8 times smaller, with 12 channels, since fewer were visibly soft."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from pathlib import Path
from typing import Final

import torch
from diffusers import AutoencoderKL
from torch import Tensor, nn

from pipeline.training.digest import digest
from pipeline.training.images import Images, as_input
from pipeline.training.precision import autocast, to_device
from pipeline.training.recorded import Batch
from pipeline.training.show import write_grid
from pipeline.training.staging import staged

CHANNELS: Final = 12
DOWN: Final = 8
_CROP: Final = 64
"""Pixels; a quarter of the batches are whole images instead, since normalisation sees more of a picture then."""
_KL: Final = 2e-5
_SHOWN: Final = 8


class VaeStage:
    """Trains on crops: absolute and squared error, absolute error of gradients (for sharp edges), a little KL.

    Args:
        images: to train on.
        shown: others, for the sample pictures.
        batch_size: crops a step.
        seed: of the first weights.
    """

    name = "vae"

    def __init__(self, images: Images, shown: Images, *, batch_size: int, seed: int) -> None:
        self._images, self._shown, self._batch_size = images, shown, batch_size
        torch.manual_seed(seed)
        self.vae = to_device(
            AutoencoderKL(
                down_block_types=("DownEncoderBlock2D",) * 4,
                up_block_types=("UpDecoderBlock2D",) * 4,
                block_out_channels=(24, 48, 96, 128),
                layers_per_block=1,
                latent_channels=CHANNELS,
                norm_num_groups=8,
                sample_size=images.pixels.shape[-1],
                mid_block_add_attention=False,
                scaling_factor=1.0,
            )
        )

        self.made_of = digest(images.digest, sorted(self.vae.config.items()), _KL, _CROP)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All weights."""
        return dict(self.vae.named_parameters())

    def draw(self, generator: torch.Generator) -> Batch:
        """Crops, and the noise that samples their posteriors."""
        crops = self._crops(generator)
        side = crops.shape[-1] // DOWN
        noise = torch.randn(len(crops), CHANNELS, side, side, generator=generator)
        return {"crops": crops.to(self.vae.device), "noise": noise.to(self.vae.device)}

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Of one batch of crops."""
        images = as_input(batch["crops"])
        with autocast(self.vae.device):
            posterior = self.vae.encode(images).latent_dist
            decoded = self.vae.decode(posterior.mean + posterior.std * batch["noise"]).sample.float()
        error = decoded - images
        absolute, squared = error.abs().mean(), error.square().mean()
        edges = error.diff(dim=-1).abs().mean() + error.diff(dim=-2).abs().mean()
        kl = posterior.kl().mean() / images[0].numel()
        return absolute + squared + 0.5 * edges + _KL * kl, {
            "absolute": absolute.detach(),
            "psnr": psnr(decoded.detach(), images).mean(),
            "kl": kl.detach(),
        }

    def show(self, folder: Path, step: int) -> None:
        """Images over what is made of them."""
        images = self._shown.pixels[:_SHOWN]
        with autocast(self.vae.device):
            latents = self.vae.encode(as_input(images).to(self.vae.device)).latent_dist.mean
            decoded = self.vae.decode(latents).sample.float().cpu()
        write_grid(folder / f"reconstruction-{step:06d}.png", torch.cat([as_input(images), decoded]), _SHOWN)

    def _crops(self, generator: torch.Generator) -> Tensor:
        whole = self._images.pixels.shape[-1]
        side = whole if torch.rand((), generator=generator) < 0.25 else _CROP
        count = max(1, self._batch_size * _CROP**2 // side**2)
        chosen = torch.randint(len(self._images), (count,), generator=generator)
        top, left = torch.randint(whole - side + 1, (2, count), generator=generator).tolist()
        return torch.stack(
            [
                self._images.pixels[index, :, y : y + side, x : x + side]
                for index, y, x in zip(chosen.tolist(), top, left, strict=True)
            ]
        )


def psnr(decoded: Tensor, images: Tensor) -> Tensor:
    """Peak signal-to-noise ratio [B] in dB of images [B, 3, H, W] in [-1, 1], clipped as a picture file would be."""
    error = (decoded.clamp(-1, 1) - images).square().mean((1, 2, 3))
    return 10 * torch.log10(4 / error)


@torch.no_grad()
def normalise(vae: AutoencoderKL, images: Images, batch_size: int = 64) -> None:
    """Give every latent channel mean 0 and variance 1 over `images`, in place.

    The statistics are folded into the 1x1 convolutions at the latents, so the scaling factor is 1 and no user of the
    model needs to know of them.
    """
    means = torch.cat(
        [
            vae.encode(as_input(batch).to(vae.device)).latent_dist.mean.transpose(0, 1).flatten(1)
            for batch in images.pixels.split(batch_size)
        ],
        dim=1,
    )
    shift, scale = means.mean(1), means.std(1)
    inward, outward = vae.quant_conv, vae.post_quant_conv
    assert inward is not None and outward is not None
    inward.weight[:CHANNELS] /= scale[:, None, None, None]
    inward.bias[:CHANNELS] = (inward.bias[:CHANNELS] - shift) / scale
    inward.bias[CHANNELS:] -= 2 * scale.log()  # the other half is the logarithm of the variance
    outward.bias += outward.weight[:, :, 0, 0] @ shift
    outward.weight *= scale[None, :, None, None]


def export(vae: AutoencoderKL, folder: Path) -> None:
    """Write it as a diffusers folder, safetensors in float16; it is whole once it has that name."""
    aside = staged(folder)
    copy.deepcopy(vae).to(torch.float16).save_pretrained(aside, safe_serialization=True)
    aside.rename(folder)
