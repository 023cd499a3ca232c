"""A ControlNet for Canny edges beside the embedded backbone's UNet, which stays as it is."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import ControlNetModel, DDPMScheduler, StableDiffusionPipeline
from torch import Tensor, nn
from torch.nn import functional as F

from pipeline.techniques.controlnet import canny_edges
from pipeline.training.digest import digest
from pipeline.training.generate import generate
from pipeline.training.images import Images
from pipeline.training.latents import Latents
from pipeline.training.precision import autocast, to_device, training_device
from pipeline.training.recorded import Batch
from pipeline.training.show import write_grid
from pipeline.training.unet import noised, plain_attention, tokenize

_EMBEDDING: Final = (16, 32, 64, 96)
"""Channels of the convolutions that bring a control image to the latents' size."""
_DROPPED: Final = 0.5
"""Share of captions left out, so that edges must say what captions do not."""
_EDGES: Final = (100, 200)
"""Canny's thresholds, the paper's."""


class ControlNetStage:
    """Learns what to add to the UNet so that it predicts v better, knowing the edges.

    Args:
        latents: of the images.
        images: the same ones, for their edges and captions.
        shown: others, whose edges the sample pictures follow.
        pipeline: the trained backbone, float32.
        batch_size: images a step.
        seed: of the first weights, as far as they are not the UNet's.
    """

    name = "controlnet"

    def __init__(
        self,
        latents: Latents,
        images: Images,
        shown: Images,
        pipeline: StableDiffusionPipeline,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._latents, self._batch_size, self._shown = latents.to(training_device()), batch_size, shown
        self._edges = edges(images.pixels)
        self._vae = to_device(pipeline.vae)
        self._unet = to_device(pipeline.unet).requires_grad_(False)
        self._text_encoder = to_device(pipeline.text_encoder).requires_grad_(False)
        self._tokens = tokenize(pipeline.tokenizer, images.captions)
        self._blank = tokenize(pipeline.tokenizer, [""])
        prompts = [*shown.captions, *[""] * len(shown)]
        self._shown_tokens = tokenize(pipeline.tokenizer, prompts)
        torch.manual_seed(seed)
        self.controlnet = to_device(
            ControlNetModel.from_unet(self._unet, conditioning_embedding_out_channels=_EMBEDDING)
        ).requires_grad_(True)
        for network in (self._unet, self.controlnet):
            plain_attention(network)
        unet = [weight for _, weight in sorted(self._unet.state_dict().items())]
        self.made_of = digest(images.digest, latents.mean, *unet, _EMBEDDING, _DROPPED, _EDGES)
        config = dict(pipeline.scheduler.config)
        self._noising = DDPMScheduler.from_config(config, clip_sample=False)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """The ControlNet's weights."""
        return dict(self.controlnet.named_parameters())

    def draw(self, generator: torch.Generator) -> Batch:
        """Noisy latents, their v and timesteps, the tokens of their captions, and their images' edges."""
        device = self._unet.device
        chosen = torch.randint(len(self._latents), (self._batch_size,), generator=generator)
        tokens = self._tokens[chosen]
        tokens[torch.rand(len(chosen), generator=generator) < _DROPPED] = self._blank
        return {
            **noised(self._noising, self._latents, chosen, generator),
            "tokens": tokens.to(device),
            "edges": self._edges[chosen].to(device),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of v, with the residuals added."""
        control = as_control(batch["edges"]).contiguous(memory_format=torch.channels_last)
        with autocast(self._unet.device):
            text = self._text(batch["tokens"])
            estimate = self._predict(batch["noisy"], batch["times"], text, control)
        return F.mse_loss(estimate.float(), batch["v"]), {}

    def show(self, folder: Path, step: int) -> None:
        """Images, their edges, and pictures of their captions that follow them."""
        shown = edges(self._shown.pixels)
        control = torch.cat([as_control(shown), as_control(shown)]).to(self._unet.device)
        with autocast(self._unet.device):
            text = self._text(self._shown_tokens)
        images = generate(
            lambda latents, time: self._predict(latents, time, text, control),
            self._vae,
            (len(shown), *self._latents.mean.shape[1:]),
        )
        rows = [self._shown.pixels.float() / 127.5 - 1, as_control(shown) * 2 - 1, images]
        write_grid(folder / f"samples-{step:06d}.png", torch.cat(rows), len(shown))

    def _predict(self, noisy: Tensor, times: Tensor, text: Tensor, control: Tensor) -> Tensor:
        down, middle = self.controlnet(noisy, times, text, control, return_dict=False)
        estimate: Tensor = self._unet(
            noisy,
            times,
            text,
            down_block_additional_residuals=down,
            mid_block_additional_residual=middle,
            return_dict=False,
        )[0]
        return estimate

    @torch.no_grad()
    def _text(self, tokens: Tensor) -> Any:
        return self._text_encoder(tokens.to(self._unet.device)).last_hidden_state


def edges(pixels: Tensor) -> Tensor:
    """Canny edges, uint8 [n, H, W] of 0 and 255, of images uint8 [n, 3, H, W]."""
    return torch.from_numpy(canny_edges(pixels.numpy(), *_EDGES))


def as_control(found: Tensor) -> Tensor:
    """Edges [B, H, W] as a control image: float32 [B, 3, H, W] in [0, 1], three equal channels."""
    return (found.float() / 255)[:, None].expand(-1, 3, -1, -1)
