"""IP-Adapter files: whether one fits a UNet and an image encoder, from the shapes in its header."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from diffusers import UNet2DConditionModel
from safetensors import SafetensorError, safe_open
from transformers import CLIPVisionConfig

from schemas import techniques as specs

_TOKENS = 4
"""That a standard adapter makes of an embedding."""

Shapes = Mapping[str, list[int]]


def check_fit(path: Path, unet: Mapping[str, Any], encoder: Mapping[str, Any], spec: specs.IpAdapter) -> None:
    """Raise ValueError unless the adapter, the UNet and the image encoder of these configs fit one another."""
    shapes = _shapes(path, f"ip-adapter {spec.source!r}")
    _check_attention(shapes, unet, f"ip-adapter {spec.source!r}")
    _check_encoder(shapes, encoder, spec, unet["cross_attention_dim"])


def _shapes(path: Path, subject: str) -> Shapes:
    """Of every tensor in a file that is an IP-Adapter's."""
    try:
        with safe_open(path, "pt") as file:
            keys = list(file.keys())
            shapes = {key: list(file.get_slice(key).get_shape()) for key in keys}
    except SafetensorError as error:
        raise ValueError(f"{subject} is no safetensors file ({error})") from error
    if not any(key.startswith("ip_adapter.") for key in shapes) or not any(
        key.startswith("image_proj.") for key in shapes
    ):
        raise ValueError(
            f"{subject} is no IP-Adapter: it needs keys image_proj.* and ip_adapter.*, and has"
            f" {', '.join(map(repr, list(shapes)[:3]))}"
        )
    return shapes


def _check_attention(shapes: Shapes, config: Mapping[str, Any], subject: str) -> None:
    """Every cross-attention of the UNet has its key and value projections, in shapes that fit."""
    with torch.device("meta"):
        network: Any = UNet2DConditionModel.from_config(dict(config))
    cross = [name for name in network.attn_processors if not name.endswith("attn1.processor")]
    expected = {}
    for place, name in enumerate(cross):
        attention = network.get_submodule(name.removesuffix(".processor"))
        for layer in ("to_k", "to_v"):
            expected[f"ip_adapter.{2 * place + 1}.{layer}_ip.weight"] = list(
                getattr(attention, layer).weight.shape
            )
    found = {key: shape for key, shape in shapes.items() if key.startswith("ip_adapter.")}
    if found == expected:
        return
    wrong = sorted(key for key in {*found, *expected} if found.get(key) != expected.get(key))
    key = wrong[0]
    raise ValueError(
        f"{subject} does not fit the backbone: {len(wrong)} of its layers differ, first {key}, which is"
        f" {found.get(key, 'missing')} in the file, and {expected.get(key, 'unknown')} in a UNet with"
        f" {len(cross)} cross-attentions that read text of width {config['cross_attention_dim']}; take one that was"
        " trained for this backbone (FaceID adapters are not supported)"
    )


def _check_encoder(
    shapes: Shapes, encoder: Mapping[str, Any], spec: specs.IpAdapter, text_width: int
) -> None:
    """The image encoder gives what the adapter's projection takes, and that gives what the UNet's attention takes."""
    subject = f"ip-adapter {spec.source!r}"
    if encoder.get("architectures") != ["CLIPVisionModelWithProjection"]:
        raise ValueError(
            f"ip-adapter.image_encoder {spec.image_encoder!r} is a {encoder.get('architectures')}; a"
            " CLIPVisionModelWithProjection is needed"
        )
    of = {key.removeprefix("image_proj."): shape for key, shape in shapes.items()}
    if "proj.weight" in of:
        width, made, name = of["proj.weight"][1], of["proj.weight"][0] // _TOKENS, "projection_dim"
    elif "latents" in of and "proj_in.weight" in of and "proj_out.weight" in of:
        width, made, name = of["proj_in.weight"][1], of["proj_out.weight"][0], "hidden_size"
    elif "proj.3.weight" in of:
        width, made, name = of["proj.0.weight"][1], of["proj.3.weight"][0], "hidden_size"
    else:
        raise ValueError(
            f"{subject}: its projection is of no kind that is supported (standard, Plus and Full Face are)"
        )
    if made != text_width:
        raise ValueError(
            f"{subject} does not fit the backbone: it makes tokens of width {made}, and the UNet reads {text_width}"
        )
    given = getattr(CLIPVisionConfig.from_dict(dict(encoder)), name)
    if given != width:
        raise ValueError(
            f"ip-adapter.image_encoder {spec.image_encoder!r} does not fit {spec.source!r}: its {name} is"
            f" {given}, and the adapter takes {width}; take the encoder it was trained with"
        )
