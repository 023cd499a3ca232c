"""IP-Adapter: the picture itself as a prompt, through cross-attention of its own beside the text's.

Diffusers' own loader makes the attention processors and the projection of the image embeddings; here they are exchanged
for the backbone's and back, which leaves its modules and weights as they are.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import UNet2DConditionModel
from numpy.typing import NDArray
from PIL import Image
from torch import Tensor, nn
from transformers import CLIPVisionModelWithProjection

from pipeline import checkpoint, sources
from pipeline.backbone import Backbone, load_module
from pipeline.techniques.base import Pictures, Technique
from pipeline.techniques.ip_adapter_files import check_fit
from schemas import techniques as specs

_MEAN = (0.48145466, 0.4578275, 0.40821073)
_STD = (0.26862954, 0.26130258, 0.27577711)
"""Of CLIP's pictures, which every image encoder of an IP-Adapter sees."""


@dataclass
class _Loaded:
    """An adapter's parts of one UNet."""

    encoder: Any
    processors: dict[str, Any]
    projection: Any


@dataclass
class _Before:
    """What the UNet had in their place."""

    processors: dict[str, Any]
    projection: nn.Module | None
    projection_type: str | None


class IpAdapter(Technique[specs.IpAdapter]):
    """Standard, Plus and Full-Face adapters of Stable Diffusion and SDXL, one picture a row."""

    changes_weights = True

    def __init__(self, spec: specs.IpAdapter, backbone: Backbone) -> None:
        super().__init__(spec, backbone)
        path, folder = _locate(spec)
        key = f"{path} {folder}"
        if key not in backbone.extras:
            backbone.extras[key] = _load(path, folder, backbone)
        self._loaded: _Loaded = backbone.extras[key]
        self._before: _Before | None = None

    @classmethod
    def check(cls, spec: specs.IpAdapter, family: type[Backbone], folder: Path) -> dict[str, str]:
        config = checkpoint.config(folder, family.network_part)
        if family.network_class is not UNet2DConditionModel or config.get("encoder_hid_dim_type"):
            raise ValueError(
                f"ip-adapter {spec.source!r}: IP-Adapters are for Stable Diffusion and SDXL, and this backbone"
                f" is a {checkpoint.pipeline_class(folder)}"
            )
        path, encoder = _locate(spec)
        check_fit(path, config, checkpoint.config(encoder), spec)
        files = {"ip-adapter": checkpoint.sha256(path)}
        for name, value in checkpoint.fingerprint_part(encoder).items():
            files[f"image-encoder/{name}"] = value
        return files

    def attach(self) -> None:
        assert self._before is None, "attached already"
        network = self.backbone.network
        self._before = _take(network)
        # Two groups may have the same adapter at different scales.
        for processor in self._loaded.processors.values():
            if hasattr(processor, "scale"):
                processor.scale = [self.spec.scale]
        _put(network, _Before(self._loaded.processors, self._loaded.projection, "ip_image_proj"))

    def detach(self) -> None:
        assert self._before is not None, "not attached"
        _put(self.backbone.network, self._before)
        self._before = None

    @torch.inference_mode()
    def look(self, pictures: Pictures) -> Tensor:
        """What the projection takes: embeddings [B, 1, C], or CLIP's last tokens but one, [B, 1, tokens, C]."""
        encoder = self._loaded.encoder
        images = clip_images(pictures.pixels, encoder.config.image_size)
        output = encoder(
            images.to(self.backbone.device, self.backbone.dtype), output_hidden_states=self._of_tokens
        )
        seen: Tensor = output.hidden_states[-2] if self._of_tokens else output.image_embeds
        return seen[:, None]

    def steer(self, seen: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        added = inputs.get("added_cond_kwargs") or {}
        return inputs | {"added_cond_kwargs": {**added, "image_embeds": [seen]}}

    @property
    def _of_tokens(self) -> bool:
        """Plus and Full Face read CLIP's tokens, the standard adapter its embedding."""
        (layer,) = self._loaded.projection.image_projection_layers  # diffusers has one for each adapter
        return type(layer).__name__ != "ImageProjection"


def clip_images(pixels: NDArray[np.uint8], side: int) -> Tensor:
    """Pictures uint8 [B, 3, H, W] as CLIP sees them, float32 [B, 3, side, side].

    The shorter side is resized (bicubic, by PIL) and the middle cropped, as by transformers' CLIPImageProcessor in
    its version for PIL; each picture by itself.
    """
    height, width = pixels.shape[2:]
    shorter = min(height, width)
    size = (int(side * height / shorter), int(side * width / shorter))
    top, left = ((length - side) // 2 for length in size)
    resized = [
        Image.fromarray(one.transpose(1, 2, 0)).resize(size[::-1], Image.Resampling.BICUBIC) for one in pixels
    ]
    stacked = np.stack([np.asarray(one)[top : top + side, left : left + side] for one in resized])
    images = torch.from_numpy(stacked).permute(0, 3, 1, 2).float() / 255
    mean, std = (torch.tensor(values)[:, None, None] for values in (_MEAN, _STD))
    return (images - mean) / std


def _locate(spec: specs.IpAdapter) -> tuple[Path, Path]:
    """Adapter and image encoder."""
    file = sources.file(spec.source, subject="ip-adapter")
    return file, sources.component(
        spec.image_encoder, spec.image_encoder_revision, subject="ip-adapter.image_encoder"
    )


def _load(path: Path, folder: Path, backbone: Backbone) -> _Loaded:
    # Here, since it warns that torchvision is missing, which nothing needs.
    from diffusers import StableDiffusionPipeline

    network = backbone.network
    encoder = load_module(CLIPVisionModelWithProjection, folder, dtype=backbone.dtype, device=backbone.device)
    others = ("vae", "text_encoder", "tokenizer", "scheduler", "safety_checker", "feature_extractor")
    pipe: Any = StableDiffusionPipeline(
        unet=network, image_encoder=encoder, requires_safety_checker=False, **dict.fromkeys(others)
    )
    before = _take(network)
    pipe.load_ip_adapter(path.parent, subfolder="", weight_name=path.name)
    made = _take(network)
    _put(network, before)
    assert made.projection is not None
    for module in (made.projection, *made.processors.values()):
        if isinstance(module, nn.Module):
            module.to(backbone.device, backbone.dtype).eval().requires_grad_(False)
    return _Loaded(encoder, made.processors, made.projection)


def _take(network: Any) -> _Before:
    processors = {
        name: one for name, one in network.attn_processors.items() if not name.startswith("encoder_hid_proj.")
    }
    return _Before(processors, network.encoder_hid_proj, network.config.encoder_hid_dim_type)


def _put(network: Any, parts: _Before) -> None:
    network.encoder_hid_proj = None  # Plus has processors of its own, which would be expected
    network.set_attn_processor(dict(parts.processors))
    network.encoder_hid_proj = parts.projection
    network.config.encoder_hid_dim_type = parts.projection_type
