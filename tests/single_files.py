"""Backbones of one file with the names of the original code base, as they are passed around; made from folders.

The names are those that diffusers' single-file loader takes apart.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

Weights = dict[str, Tensor]

_UNIT = {
    "norm1": "in_layers.0",
    "conv1": "in_layers.2",
    "time_emb_proj": "emb_layers.1",
    "norm2": "out_layers.0",
    "conv2": "out_layers.3",
    "conv_shortcut": "skip_connection",
}
_UNET_ENDS = {
    "time_embedding.linear_1": "time_embed.0",
    "time_embedding.linear_2": "time_embed.2",
    "add_embedding.linear_1": "label_emb.0.0",
    "add_embedding.linear_2": "label_emb.0.2",
    "conv_in": "input_blocks.0.0",
    "conv_norm_out": "out.0",
    "conv_out": "out.2",
}
_VAE: list[tuple[str, Any]] = [
    (r"mid_block\.resnets\.(\d)", lambda found: f"mid.block_{int(found[1]) + 1}"),
    (r"mid_block\.attentions\.0", "mid.attn_1"),
    (r"down_blocks\.(\d)\.resnets\.(\d)", r"down.\1.block.\2"),
    (r"down_blocks\.(\d)\.downsamplers\.0", r"down.\1.downsample"),
    (r"up_blocks\.(\d)\.resnets\.(\d)", lambda found: f"up.{3 - int(found[1])}.block.{found[2]}"),
    (r"up_blocks\.(\d)\.upsamplers\.0", lambda found: f"up.{3 - int(found[1])}.upsample"),
    (r"conv_shortcut", "nin_shortcut"),
    (r"conv_norm_out", "norm_out"),
    (r"group_norm", "norm"),
    (r"to_out\.0", "proj_out"),
    (r"to_([qkv])", r"\1"),
]
_OPEN_CLIP = {
    "text_model.embeddings.position_embedding.weight": "positional_embedding",
    "text_model.embeddings.token_embedding": "token_embedding",
    "text_model.final_layer_norm": "ln_final",
    "text_model.encoder.layers": "transformer.resblocks",
    "layer_norm1": "ln_1",
    "layer_norm2": "ln_2",
    "mlp.fc1": "mlp.c_fc",
    "mlp.fc2": "mlp.c_proj",
    "self_attn.out_proj": "attn.out_proj",
}


def save(folder: Path, file: Path, *, layers: int, dtype: torch.dtype = torch.float32) -> Path:
    """Write the networks of a Stable Diffusion 1 or XL folder, whose UNet has `layers` a block, into one file."""
    weights = {
        f"model.diffusion_model.{name}": value for name, value in _unet(_part(folder, "unet"), layers).items()
    }
    for name, value in _part(folder, "vae").items():
        if "mid_block.attentions.0.to_" in name and value.ndim == 2:
            value = value[..., None, None]  # a convolution there
        for pattern, new in _VAE:
            name = re.sub(pattern, new, name)
        weights[f"first_stage_model.{name}"] = value
    first = _text_model(_part(folder, "text_encoder"))
    if (folder / "text_encoder_2").is_dir():
        weights |= {f"conditioner.embedders.0.transformer.{name}": value for name, value in first.items()}
        second = dict(_open_clip(_part(folder, "text_encoder_2")))
        weights |= {f"conditioner.embedders.1.model.{name}": value for name, value in second.items()}
    else:
        weights |= {f"cond_stage_model.transformer.{name}": value for name, value in first.items()}
    saved = {name: value.to(dtype).contiguous() for name, value in weights.items()}
    save_file({**saved, "alphas_cumprod": torch.ones(1000)}, file)
    return file


def _part(folder: Path, part: str) -> Weights:
    files = (folder / part).glob("*.safetensors")
    return {name: value for file in files for name, value in load_file(file).items()}


def _unet(weights: Weights, layers: int) -> Weights:
    blocks = 1 + max(int(name.split(".")[1]) for name in weights if name.startswith("down_blocks"))
    renamed = {}
    for name, value in weights.items():
        stage, *rest = name.split(".")
        if stage == "down_blocks":
            place = 1 + int(rest[0]) * (layers + 1)
            new = f"input_blocks.{place + (layers if rest[1] == 'downsamplers' else int(rest[2]))}."
            new += "0.op." + rest[-1] if rest[1] == "downsamplers" else _in_unit(rest[1:])
        elif stage == "up_blocks":
            place = int(rest[0]) * (layers + 1)
            attends = f"up_blocks.{rest[0]}.attentions.0.norm.weight" in weights
            new = f"output_blocks.{place + (layers if rest[1] == 'upsamplers' else int(rest[2]))}."
            new += f"{1 + attends}.conv.{rest[-1]}" if rest[1] == "upsamplers" else _in_unit(rest[1:])
        elif stage == "mid_block":
            place = 1 if rest[0] == "attentions" else 2 * int(rest[1])
            new = f"middle_block.{place}." + _in_unit(rest).split(".", 1)[1]
        else:
            head, kind = name.rsplit(".", 1)
            new = f"{_UNET_ENDS[head]}.{kind}"
        renamed[new] = value
    assert len(renamed) == len(weights) and blocks > 1
    return renamed


def _in_unit(rest: list[str]) -> str:
    """resnets.I.LAYER... or attentions.I.LAYER... as the first or second module of its block."""
    if rest[0] == "attentions":
        return ".".join(["1", *rest[2:]])
    return ".".join(["0", _UNIT[rest[2]], *rest[3:]])


def _text_model(weights: Weights) -> Weights:
    """With the prefix that newer transformers leave out when they save."""
    return {f"text_model.{name.removeprefix('text_model.')}": value for name, value in weights.items()}


def _open_clip(weights: Weights) -> Iterator[tuple[str, Tensor]]:
    for name, value in weights.items():
        if name == "text_projection.weight":
            yield "text_projection", value.T
        elif "q_proj" in name:
            layers = [weights[name.replace("q_proj", f"{one}_proj")] for one in "qkv"]
            yield _renamed(name.replace("self_attn.q_proj.", "attn.in_proj_")), torch.cat(layers)
        elif "k_proj" not in name and "v_proj" not in name:
            yield _renamed(name), value


def _renamed(name: str) -> str:
    for old, new in _OPEN_CLIP.items():
        name = name.replace(old, new)
    return name
