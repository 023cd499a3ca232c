"""Configs of full-size checkpoints as published, without weights: what plans and figures follow from."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

from tests import backbones

_VAE = {
    "_class_name": "AutoencoderKL",
    "act_fn": "silu",
    "block_out_channels": [128, 256, 512, 512],
    "down_block_types": ["DownEncoderBlock2D"] * 4,
    "in_channels": 3,
    "latent_channels": 4,
    "layers_per_block": 2,
    "norm_num_groups": 32,
    "out_channels": 3,
    "up_block_types": ["UpDecoderBlock2D"] * 4,
}
_SD_15_UNET = {
    "_class_name": "UNet2DConditionModel",
    "act_fn": "silu",
    "attention_head_dim": 8,
    "block_out_channels": [320, 640, 1280, 1280],
    "center_input_sample": False,
    "cross_attention_dim": 768,
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "downsample_padding": 1,
    "flip_sin_to_cos": True,
    "freq_shift": 0,
    "in_channels": 4,
    "layers_per_block": 2,
    "mid_block_scale_factor": 1,
    "norm_eps": 1e-05,
    "norm_num_groups": 32,
    "out_channels": 4,
    "sample_size": 64,
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
_SD_21_UNET = _SD_15_UNET | {
    "attention_head_dim": [5, 10, 20, 20],
    "cross_attention_dim": 1024,
    "sample_size": 96,
    "use_linear_projection": True,
}
_BETAS = {"beta_schedule": "scaled_linear", "beta_start": 0.00085, "beta_end": 0.012, "steps_offset": 1}
_CLIP_L = {"hidden_size": 768, "max_position_embeddings": 77, "projection_dim": 768}

SD_15: dict[str, dict[str, Any]] = {
    "unet": _SD_15_UNET,
    "vae": _VAE,
    "text_encoder": _CLIP_L,
    "scheduler": {
        "_class_name": "PNDMScheduler",
        "skip_prk_steps": True,
        "set_alpha_to_one": False,
        **_BETAS,
    },
}
SD_21: dict[str, dict[str, Any]] = {
    "unet": _SD_21_UNET,
    "vae": _VAE | {"sample_size": 768},
    "text_encoder": {"hidden_size": 1024, "max_position_embeddings": 77},
    "scheduler": {
        "_class_name": "DDIMScheduler",
        "prediction_type": "v_prediction",
        "set_alpha_to_one": False,
        **_BETAS,
    },
}
FLUX: dict[str, dict[str, Any]] = {
    "transformer": {
        "_class_name": "FluxTransformer2DModel",
        "attention_head_dim": 128,
        "guidance_embeds": True,
        "in_channels": 64,
        "joint_attention_dim": 4096,
        "num_attention_heads": 24,
        "num_layers": 19,
        "num_single_layers": 38,
        "patch_size": 1,
        "pooled_projection_dim": 768,
    },
    "vae": _VAE | {"latent_channels": 16, "scaling_factor": 0.3611, "shift_factor": 0.1159},
    "text_encoder": _CLIP_L,
    "text_encoder_2": {"d_model": 4096},
    "scheduler": {
        "_class_name": "FlowMatchEulerDiscreteScheduler",
        "num_train_timesteps": 1000,
        "shift": 3.0,
        "use_dynamic_shifting": True,
    },
}
_LIKE = {"StableDiffusionPipeline": "sd1", "FluxPipeline": "flux"}


def write(folder: Path, pipeline: str, parts: dict[str, dict[str, Any]]) -> Path:
    """A diffusers folder of these configs, with a tiny backbone's tokenizers; returns it."""
    shutil.copytree(
        backbones.tiny(_LIKE[pipeline]),
        folder,
        ignore=lambda _, names: [name for name in names if name.endswith(".safetensors")],
    )
    for part, config in parts.items():
        name = "scheduler_config.json" if part == "scheduler" else "config.json"
        (folder / part / name).write_text(json.dumps(config))
    return folder
