"""The embedded backbone's UNet and text encoder, trained together from nothing."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Final

import torch
from diffusers import (
    AutoencoderKL,
    ControlNetModel,
    DDPMScheduler,
    PNDMScheduler,
    StableDiffusionPipeline,
    UNet2DConditionModel,
)
from diffusers.models.attention_processor import AttnProcessor
from torch import Tensor, nn
from torch.nn import functional as F
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTokenizer

from pipeline.training.digest import digest
from pipeline.training.generate import SCHEDULE, generate
from pipeline.training.latents import Latents
from pipeline.training.precision import autocast, normal, to_device, training_device
from pipeline.training.recorded import Batch
from pipeline.training.show import write_grid
from pipeline.training.staging import staged
from pipeline.training.tokens import TOKENS

UNET: Final[dict[str, Any]] = {
    "down_block_types": ("CrossAttnDownBlock2D",) * 3 + ("DownBlock2D",),
    "up_block_types": ("UpBlock2D",) + ("CrossAttnUpBlock2D",) * 3,
    "block_out_channels": (64, 96, 96, 64),
    "layers_per_block": 2,
    "attention_head_dim": 2,  # the number of heads: a name that diffusers keeps for old configs
    "norm_num_groups": 16,
}
"""Stable Diffusion 1.5's topology, so that every tap of it exists, in a fifth of its width and less."""
_TEXT_WIDTH: Final = 128
_DROPPED: Final = 0.1
"""Share of captions that are left out, so that guidance has something to guide away from."""
_LOW: Final = 1.3
"""Timesteps are drawn as u ** 1.3: features are taken at low ones."""
_SHOWN: Final = (
    "a photo of a large orange tiger mammal, snow, best quality, sharp",
    "a photo of a large pink flower, sky over grass, best quality, sharp",
    "a photo of a white bird, sea, best quality, sharp",
    "a photo of a large red strawberry fruit, sand, best quality, sharp",
    "a photo of a large blue vehicle, road, best quality, sharp",
    "a photo of a large green tree, sky over grass, best quality, sharp",
    "a photo of a large planet, night, best quality, sharp",
    "a photo of a large orange fish, sea, best quality, sharp",
)


class UNetStage:
    """Predicts v at timesteps drawn toward the low end, with the caption or, one time in ten, with none.

    Args:
        latents: of the images.
        captions: theirs.
        vae: for the sample pictures.
        tokenizer: of the captions.
        batch_size: images a step.
        seed: of the first weights.
    """

    name = "unet"

    def __init__(
        self,
        latents: Latents,
        captions: Sequence[str],
        vae: AutoencoderKL,
        tokenizer: CLIPTokenizer,
        *,
        batch_size: int,
        seed: int,
    ) -> None:
        self._latents, self._batch_size, self._vae = latents.to(training_device()), batch_size, vae
        self.tokenizer = tokenizer
        self._tokens, self._blank = tokenize(tokenizer, captions), tokenize(tokenizer, [""])
        self._shown = tokenize(tokenizer, [*_SHOWN, *[""] * len(_SHOWN)])
        torch.manual_seed(seed)
        self.text_encoder = to_device(CLIPTextModel(_text_config(tokenizer)))
        channels, side = latents.mean.shape[1], latents.mean.shape[2]
        self.unet = to_device(
            UNet2DConditionModel(
                sample_size=side,
                in_channels=channels,
                out_channels=channels,
                cross_attention_dim=_TEXT_WIDTH,
                **UNET,
            )
        )
        plain_attention(self.unet)
        self._noising = DDPMScheduler(**_ddpm())

        self.made_of = digest(latents.mean, latents.std, captions, sorted(UNET.items()), _LOW, _DROPPED)

    def parameters(self) -> Mapping[str, nn.Parameter]:
        """All weights of both networks."""
        parts = {"unet": self.unet, "text_encoder": self.text_encoder}
        return {
            f"{part}.{name}": weight
            for part, network in parts.items()
            for name, weight in network.named_parameters()
        }

    def draw(self, generator: torch.Generator) -> Batch:
        """Noisy latents, their v and timesteps, and the tokens of their captions."""
        chosen = torch.randint(len(self._latents), (self._batch_size,), generator=generator)
        tokens = self._tokens[chosen]
        tokens[torch.rand(len(chosen), generator=generator) < _DROPPED] = self._blank
        return {
            **noised(self._noising, self._latents, chosen, generator),
            "tokens": tokens.to(self.unet.device),
        }

    def loss(self, batch: Batch) -> tuple[Tensor, dict[str, Tensor]]:
        """Mean squared error of v."""
        with autocast(self.unet.device):
            text = self.text_encoder(batch["tokens"]).last_hidden_state
            estimate = self.unet(batch["noisy"], batch["times"], text, return_dict=False)[0]
        return F.mse_loss(estimate.float(), batch["v"]), {}

    def show(self, folder: Path, step: int) -> None:
        """Pictures of eight prompts."""
        with autocast(self.unet.device):
            text = self.text_encoder(self._shown.to(self.unet.device)).last_hidden_state
        images = generate(
            lambda latents, time: self.unet(latents, time, text, return_dict=False)[0],
            self._vae,
            (len(_SHOWN), *self._latents.mean.shape[1:]),
        )
        write_grid(folder / f"samples-{step:06d}.png", images, len(_SHOWN))


def plain_attention(network: UNet2DConditionModel | ControlNetModel) -> None:
    """On a CPU, whose fused kernel has a slow gradient for narrow heads: half of a step was spent in it."""
    if network.device.type == "cpu":
        network.set_attn_processor(AttnProcessor())


def tokenize(tokenizer: CLIPTokenizer, prompts: Sequence[str]) -> Tensor:
    """Prompts to token numbers, int64 [n, tokens]."""
    ids: Tensor = tokenizer(
        list(prompts), padding="max_length", truncation=True, max_length=TOKENS, return_tensors="pt"
    ).input_ids
    return ids


def noised(
    scheduler: DDPMScheduler, latents: Latents, chosen: Tensor, generator: torch.Generator
) -> dict[str, Tensor]:
    """`noisy` latents, the `v` that they hold (float32 [B, c, h, w] both), and their timesteps `times` [B]."""
    clean = latents.draw(chosen, generator)
    drawn = torch.rand(len(chosen), generator=generator) ** _LOW
    times = (drawn * scheduler.config["num_train_timesteps"]).long().to(clean.device)
    noise = normal(clean.shape, generator, clean.device)
    noisy = scheduler.add_noise(clean, noise, times).contiguous(memory_format=torch.channels_last)
    return {"noisy": noisy, "v": scheduler.get_velocity(clean, noise, times), "times": times}


def export(
    unet: UNet2DConditionModel,
    text_encoder: CLIPTextModel,
    vae: AutoencoderKL,
    tokenizer: CLIPTokenizer,
    folder: Path,
) -> None:
    """Write a StableDiffusionPipeline in diffusers' layout, safetensors in float16; whole once it has that name."""
    scheduler = PNDMScheduler(**SCHEDULE, skip_prk_steps=True)
    copies = (copy.deepcopy(network) for network in (vae, text_encoder))
    pipeline = StableDiffusionPipeline(
        *copies, tokenizer, copy.deepcopy(unet), scheduler, None, None, requires_safety_checker=False
    )
    aside = staged(folder)
    pipeline.to(torch.float16).save_pretrained(aside, safe_serialization=True)
    aside.rename(folder)


def _text_config(tokenizer: CLIPTokenizer) -> CLIPTextConfig:
    return CLIPTextConfig(
        vocab_size=len(tokenizer),
        hidden_size=_TEXT_WIDTH,
        intermediate_size=4 * _TEXT_WIDTH,
        num_hidden_layers=2,
        num_attention_heads=4,
        max_position_embeddings=TOKENS,
        projection_dim=_TEXT_WIDTH,
        bos_token_id=tokenizer.bos_token_id,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _ddpm() -> dict[str, Any]:
    return {key: value for key, value in SCHEDULE.items() if key != "set_alpha_to_one"}
