"""Stable Diffusion 1.5 and XL at their real size, with random weights, saved and loaded as users would.

Minutes and gigabytes, so on demand only: FULL_SIZE=1 pytest -s tests/pipeline/families/test_full_size.py
"""

from __future__ import annotations

import os
import resource
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from diffusers import AutoencoderKL, UNet2DConditionModel
from torch import nn
from transformers import CLIPTextConfig, CLIPTextModel, CLIPTextModelWithProjection, CLIPTokenizer

from pipeline import checkpoint, families, taps
from schemas import taps as vocabulary
from tests.backbones import GOLDEN

pytestmark = [
    pytest.mark.skipif("FULL_SIZE" not in os.environ, reason="needs FULL_SIZE=1, minutes and 20 GB of disk"),
    pytest.mark.timeout(3600),
    pytest.mark.slow,
]
CLIP_L = {
    "hidden_size": 768,
    "intermediate_size": 3072,
    "num_hidden_layers": 12,
    "num_attention_heads": 12,
    "projection_dim": 768,
}
CLIP_G = {
    "hidden_size": 1280,
    "intermediate_size": 5120,
    "num_hidden_layers": 32,
    "num_attention_heads": 20,
    "projection_dim": 1280,
    "hidden_act": "gelu",
}


@contextmanager
def stopwatch(what: str) -> Iterator[None]:
    start = time.perf_counter()
    yield
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20
    print(f"\n{what}: {time.perf_counter() - start:.1f} s, {peak:.1f} GiB at most so far")


@torch.no_grad()
def filled(build: Callable[[], Any]) -> Any:
    """A module in bfloat16 without the minutes that its own initialisation takes; it keeps numbers in range."""
    with torch.device("meta"):
        module: nn.Module = build()
    module = module.to(torch.bfloat16).to_empty(device="cpu").eval()
    for name, weight in module.named_parameters():
        if weight.ndim < 2:
            weight.fill_(1.0 if name.endswith("weight") else 0.0)
        else:
            weight.normal_(std=weight[0].numel() ** -0.5)
    for name, value in module.named_buffers():
        assert name.endswith("position_ids"), name
        value.copy_(torch.arange(value.shape[-1]).expand_as(value))
    return module


def clip(kind: Any, **config: Any) -> Any:
    return filled(lambda: kind(CLIPTextConfig(**config)))


def vae(scaling_factor: float) -> Any:
    return filled(
        lambda: AutoencoderKL(
            block_out_channels=(128, 256, 512, 512),
            down_block_types=("DownEncoderBlock2D",) * 4,
            up_block_types=("UpDecoderBlock2D",) * 4,
            layers_per_block=2,
            latent_channels=4,
            sample_size=512,
            scaling_factor=scaling_factor,
        )
    )


def tokenizer() -> Any:
    return CLIPTokenizer.from_pretrained(GOLDEN / "sd15-tiny" / "tokenizer")


def stable_diffusion_15() -> Any:
    unet = filled(lambda: UNet2DConditionModel(sample_size=64, cross_attention_dim=768, attention_head_dim=8))
    return diffusers.StableDiffusionPipeline(
        vae=vae(0.18215),
        text_encoder=clip(CLIPTextModel, **CLIP_L),
        tokenizer=tokenizer(),
        unet=unet,
        scheduler=diffusers.PNDMScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            skip_prk_steps=True,
            steps_offset=1,
        ),
        safety_checker=None,
        feature_extractor=None,
        requires_safety_checker=False,
    )


def stable_diffusion_xl() -> Any:
    unet = filled(
        lambda: UNet2DConditionModel(
            sample_size=128,
            block_out_channels=(320, 640, 1280),
            down_block_types=("DownBlock2D", "CrossAttnDownBlock2D", "CrossAttnDownBlock2D"),
            up_block_types=("CrossAttnUpBlock2D", "CrossAttnUpBlock2D", "UpBlock2D"),
            transformer_layers_per_block=[1, 2, 10],
            attention_head_dim=[5, 10, 20],
            cross_attention_dim=2048,
            use_linear_projection=True,
            addition_embed_type="text_time",
            addition_time_embed_dim=256,
            projection_class_embeddings_input_dim=2816,
        )
    )
    return diffusers.StableDiffusionXLPipeline(
        vae=vae(0.13025),
        text_encoder=clip(CLIPTextModel, **CLIP_L),
        text_encoder_2=clip(CLIPTextModelWithProjection, **CLIP_G),
        tokenizer=tokenizer(),
        tokenizer_2=tokenizer(),
        unet=unet,
        scheduler=diffusers.EulerDiscreteScheduler(
            beta_schedule="scaled_linear",
            beta_start=0.00085,
            beta_end=0.012,
            steps_offset=1,
            timestep_spacing="leading",
        ),
        add_watermarker=False,
    )


@pytest.mark.parametrize(
    ("build", "side", "count", "parameters"),
    [(stable_diffusion_15, 512, 197, 859_520_964), (stable_diffusion_xl, 1024, 612, 2_567_463_684)],
)
def test_every_tap(build: Callable[[], Any], side: int, count: int, parameters: int, tmp_path: Path) -> None:
    """One picture from pixels to every map; attention maps, of gigabytes, at the mid block only."""
    with stopwatch("built and saved"):
        build().save_pretrained(tmp_path, max_shard_size="3GB")
    with stopwatch("loaded"):
        loaded = families.load(tmp_path, dtype=torch.bfloat16, device="cpu")
    kind, config = type(loaded), checkpoint.config(tmp_path, "unet")
    assert sum(weight.numel() for weight in loaded.network.parameters()) == parameters
    names = [name for name in vocabulary.names(config) if name != vocabulary.ATTN]
    assert len(names) == count

    blank = kind.blank_text(tmp_path, kind.text_tokens(tmp_path))
    latents = torch.zeros(1, *kind.latent_shape(tmp_path, (side, side)))
    with stopwatch("shapes of all taps"):
        planned = taps.shapes(
            kind.network_class, config, names, lambda network: kind.inputs(network, latents, 0, blank)
        )
    asked = [name for name in names if not name.endswith("-map") or name.startswith("mid-vit-block0")]

    with stopwatch("text"):
        text = loaded.encode_text(["a photo of a duck and a tree"])
    assert {name: value.shape for name, value in text.items()} == {
        name: one.shape for name, one in blank.items()
    }
    with stopwatch("VAE"):
        mean, std = loaded.encode_images(torch.randint(0, 256, (1, 3, side, side), dtype=torch.uint8))
    timestep = loaded.schedule.timestep(50)
    noisy = loaded.schedule.add_noise(loaded.scale_latents(mean), torch.randn(mean.shape), timestep)
    inputs = loaded.inputs(
        loaded.network, loaded.schedule.scale(noisy, timestep).bfloat16(), torch.tensor(timestep), text
    )
    with stopwatch(f"{len(asked)} taps"):
        found = taps.Recorder(loaded.network, asked).run(lambda: loaded.predict(inputs))
    assert {name: tuple(one.shape[1:]) for name, one in found.items()} == {
        name: planned[name] for name in asked
    }
    assert all(one.isfinite().all() for one in found.values())
    assert std.isfinite().all() and found["unet-out"].float().std() > 0
