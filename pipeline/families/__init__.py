"""The families of backbones, a module each. A new one is one more module, named here."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import torch
import transformers
from diffusers import UNet2DConditionModel
from torch import nn

from pipeline import checkpoint
from pipeline.backbone import Backbone
from pipeline.families.deepfloyd import DeepFloydIF
from pipeline.families.flux import Flux
from pipeline.families.hunyuan import HunyuanDiT
from pipeline.families.pixart import PixArt
from pipeline.families.sd3 import StableDiffusion3
from pipeline.families.sdxl import StableDiffusionXL
from pipeline.families.stable_diffusion import StableDiffusion

FAMILIES: tuple[type[Backbone], ...] = (
    StableDiffusion,
    StableDiffusionXL,
    PixArt,
    StableDiffusion3,
    Flux,
    HunyuanDiT,
    DeepFloydIF,
)
_UNETS = {"text_time": StableDiffusionXL, "text": DeepFloydIF, None: StableDiffusion}
"""By what a UNet takes besides time and text: `addition_embed_type` of its config."""


def family(folder: Path) -> type[Backbone]:
    """The family of a diffusers folder.

    Raises:
        ValueError: a pipeline of no family that is known.
    """
    return named(checkpoint.pipeline_class(folder), str(folder))


def named(pipeline: str, source: str) -> type[Backbone]:
    """The family that loads checkpoints of a pipeline class; `source` is for the message."""
    for one in FAMILIES:
        if pipeline in one.pipelines:
            return one
    known = ", ".join(name for one in FAMILIES for name in one.pipelines)
    raise ValueError(f"backbone {source!r} is a {pipeline}; supported are {known}")


def for_network(network: nn.Module) -> type[Backbone]:
    """The family that calls a network as its `inputs` says.

    Raises:
        ValueError: a network of no family that is known.
    """
    if isinstance(network, UNet2DConditionModel):
        config: Any = network.config
        kind = config.addition_embed_type
        if kind in _UNETS:
            return _UNETS[kind]
        raise ValueError(
            f"the UNet has addition_embed_type {kind!r}; supported are {', '.join(map(repr, _UNETS))}"
        )
    for one in FAMILIES:
        if isinstance(network, one.network_class):
            return one
    known = ", ".join(dict.fromkeys(one.network_class.__name__ for one in FAMILIES))
    raise ValueError(f"the network is a {type(network).__name__}; supported are {known}")


def load(folder: Path, *, dtype: torch.dtype, device: torch.device | str) -> Backbone:
    """A checkpoint on its device."""
    transformers.logging.disable_progress_bar()  # of a second, and no line that a log can use
    return family(folder)(folder, dtype=dtype, device=device)
