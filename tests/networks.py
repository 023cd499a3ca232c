"""Tiny networks with random weights, one of each kind that has tap names, and inputs for them."""

from __future__ import annotations

from functools import cache
from typing import Any

import torch
from diffusers import (
    FluxTransformer2DModel,
    HunyuanDiT2DModel,
    PixArtTransformer2DModel,
    SD3Transformer2DModel,
    UNet2DConditionModel,
)
from torch import Tensor

from pipeline import families

TEXT = 6  # tokens
CONFIGS: dict[str, tuple[Any, dict[str, Any]]] = {
    "pixart": (
        PixArtTransformer2DModel,
        {
            "num_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "cross_attention_dim": 16,
            "caption_channels": 12,
            "sample_size": 8,
        },
    ),
    "sd3": (
        SD3Transformer2DModel,
        {
            "num_layers": 3,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "in_channels": 4,
            "out_channels": 4,
            "joint_attention_dim": 12,
            "caption_projection_dim": 16,
            "pooled_projection_dim": 10,
            "sample_size": 16,
            "pos_embed_max_size": 16,
            "dual_attention_layers": (0,),
            "qk_norm": "rms_norm",
        },
    ),
    "flux": (
        FluxTransformer2DModel,
        {
            "num_layers": 2,
            "num_single_layers": 2,
            "num_attention_heads": 2,
            "attention_head_dim": 16,
            "in_channels": 16,
            "joint_attention_dim": 12,
            "pooled_projection_dim": 10,
            "axes_dims_rope": (4, 6, 6),
            "guidance_embeds": True,
        },
    ),
    "hunyuan": (
        HunyuanDiT2DModel,
        {
            "num_layers": 4,
            "num_attention_heads": 2,
            "attention_head_dim": 8,
            "hidden_size": 16,
            "in_channels": 4,
            "patch_size": 2,
            "sample_size": 8,
            "cross_attention_dim": 12,
            "cross_attention_dim_t5": 8,
            "pooled_projection_dim": 10,
            "text_len": TEXT,
            "text_len_t5": 3,
        },
    ),
    "deepfloyd": (
        UNet2DConditionModel,
        {
            "in_channels": 3,
            "out_channels": 6,
            "down_block_types": ("ResnetDownsampleBlock2D", "SimpleCrossAttnDownBlock2D"),
            "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
            "up_block_types": ("SimpleCrossAttnUpBlock2D", "ResnetUpsampleBlock2D"),
            "block_out_channels": (8, 16),
            "layers_per_block": 1,
            "attention_head_dim": 4,
            "norm_num_groups": 4,
            "cross_attention_dim": 32,
            "encoder_hid_dim": 10,
            "encoder_hid_dim_type": "text_proj",
            "addition_embed_type": "text",
            "addition_embed_type_num_heads": 2,
            "cross_attention_norm": "group_norm",
            "resnet_time_scale_shift": "scale_shift",
            "act_fn": "gelu",
        },
    ),
}
"""Class and config of each."""


@cache
def network(name: str) -> Any:
    """The same weights whenever it is asked for."""
    kind, config = CONFIGS[name]
    torch.manual_seed(0)
    made = kind(**config).eval().requires_grad_(False)
    generator = torch.Generator().manual_seed(1)
    for one in made.parameters():  # gates and scales that start at zero or one must not hide a mistake
        if one.ndim == 1:
            one.data += torch.randn(one.shape, generator=generator) * 0.3
    return made


def latents(name: str, batch: int = 1, size: tuple[int, int] = (8, 12)) -> Tensor:
    """Random latents, other ones for every image."""
    made = network(name)
    channels = made.config.in_channels // (4 if name == "flux" else 1)
    return torch.randn(batch, channels, *size, generator=torch.Generator().manual_seed(2))


def text(name: str, batch: int = 1) -> dict[str, Any]:
    """Random encodings of prompts, with the last two tokens masked where the network takes a mask."""
    generator = torch.Generator().manual_seed(3)

    def normal(*shape: int) -> Tensor:
        return torch.randn(batch, *shape, generator=generator)

    mask = torch.tensor([1] * (TEXT - 2) + [0, 0]).repeat(batch, 1)
    found: dict[str, dict[str, Tensor]] = {
        "pixart": {"prompt_embeds": normal(TEXT, 12), "prompt_attention_mask": mask},
        "sd3": {"prompt_embeds": normal(TEXT, 12), "pooled_prompt_embeds": normal(10)},
        "flux": {"prompt_embeds": normal(TEXT, 12), "pooled_prompt_embeds": normal(10)},
        "hunyuan": {
            "prompt_embeds": normal(TEXT, 12),
            "prompt_attention_mask": mask,
            "prompt_embeds_2": normal(3, 8),
            "prompt_attention_mask_2": mask[:, :3],
        },
        "deepfloyd": {"prompt_embeds": normal(TEXT, 10)},
    }
    return found[name]


def inputs(name: str, batch: int = 1, size: tuple[int, int] = (8, 12)) -> dict[str, Any]:
    """Arguments of one call of a network."""
    made = network(name)
    timestep = torch.tensor(261)
    return families.for_network(made).inputs(made, latents(name, batch, size), timestep, text(name, batch))
