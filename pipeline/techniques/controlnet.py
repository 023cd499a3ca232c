"""ControlNet: residuals from a control image, added to the UNet's own skip connections and mid block."""

from __future__ import annotations

import importlib
import inspect
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from torch import Tensor

from pipeline import checkpoint, sources
from pipeline.backbone import Backbone
from pipeline.techniques.base import Pictures, Technique
from schemas import techniques as specs

_SAME = ("block_out_channels", "cross_attention_dim", "in_channels", "addition_embed_type")
"""What a ControlNet's config must have in common with the UNet's."""
_SHARED = ("sample", "timestep", "encoder_hidden_states")
_SHARED_SDXL = ("text_embeds", "time_ids")


class ControlNet(Technique[specs.ControlNet]):
    """Gets the same latents, timestep and text as the UNet, and an image of the sample."""

    def __init__(self, spec: specs.ControlNet, backbone: Backbone) -> None:
        super().__init__(spec, backbone)
        folder = _locate(spec)
        if str(folder) not in backbone.extras:
            network: Any = ControlNetModel.from_pretrained(
                folder, torch_dtype=backbone.dtype, use_safetensors=True, local_files_only=True
            )
            backbone.extras[str(folder)] = network.to(backbone.device).eval().requires_grad_(False)
        self._network = backbone.extras[str(folder)]

    @classmethod
    def check(cls, spec: specs.ControlNet, family: type[Backbone], folder: Path) -> dict[str, str]:
        if family.network_class is not UNet2DConditionModel:
            raise ValueError(
                f"controlnet {spec.source!r}: ControlNets are supported for UNets, and this backbone's network is a"
                f" {family.network_class.__name__}"
            )
        found = _locate(spec)
        unet, control = checkpoint.config(folder, "unet"), checkpoint.config(found)
        if (kind := control.get("_class_name")) != "ControlNetModel":
            raise ValueError(f"controlnet {spec.source!r} is a {kind}; a ControlNetModel is needed")
        for key in _SAME:
            if control.get(key) != unet.get(key):
                raise ValueError(
                    f"controlnet {spec.source!r} does not fit the backbone: its {key} is {control.get(key)}, the UNet's"
                    f" is {unet.get(key)}; take one that was trained for this backbone"
                )
        files = {f"controlnet/{path}": value for path, value in checkpoint.fingerprint_part(found).items()}
        if spec.image.startswith("call:"):
            files[spec.image] = checkpoint.sha256(Path(inspect.getfile(_function(spec.image))))
        return files

    @property
    def sight(self) -> tuple[object, ...]:
        return ("controlnet", self.spec.image, self.spec.low, self.spec.high)

    def look(self, pictures: Pictures) -> Tensor:
        """Control images [B, 3, H, W] in [0, 1]."""
        if self.spec.field is not None:
            images = torch.from_numpy(pictures.fields[self.spec.field]).float() / 255
        elif self.spec.image == "canny":
            images = canny(pictures, self.spec.low, self.spec.high)
        else:
            images = torch.as_tensor(_function(self.spec.image)(pictures.pixels))
            if images.shape != pictures.pixels.shape:
                raise ValueError(
                    f"{self.spec.image} gave {list(images.shape)} for pixels {list(pictures.pixels.shape)}; control"
                    " images have the shape of the pixels"
                )
        return images.to(self.backbone.device, self.backbone.dtype)

    def steer(self, seen: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        own = {name: inputs[name] for name in _SHARED}
        if "added_cond_kwargs" in inputs:
            given = inputs["added_cond_kwargs"]
            own["added_cond_kwargs"] = {name: given[name] for name in _SHARED_SDXL if name in given}
        down, mid = self._network(
            **own, controlnet_cond=seen, conditioning_scale=self.spec.scale, return_dict=False
        )
        if "mid_block_additional_residual" in inputs:  # another ControlNet was there before
            down = [a + b for a, b in zip(inputs["down_block_additional_residuals"], down, strict=True)]
            mid = inputs["mid_block_additional_residual"] + mid
        return inputs | {
            "down_block_additional_residuals": tuple(down),
            "mid_block_additional_residual": mid,
        }


def canny(pictures: Pictures, low: int, high: int) -> Tensor:
    """Edges of pictures by OpenCV's Canny, float32 [B, 3, H, W] in {0, 1}, three equal channels.

    The line where a picture meets padding is no edge of the picture, and left out.
    """
    edges = np.stack(
        [cv2.Canny(np.ascontiguousarray(one.transpose(1, 2, 0)), low, high) for one in pictures.pixels]
    )
    for one, (top, left, height, width) in zip(edges, pictures.boxes, strict=True):
        for lines, start, length in ((one, top, height), (one.T, left, width)):
            if start > 0:
                lines[: start + 1] = 0
            if start + length < len(lines):
                lines[max(0, start + length - 1) :] = 0
    return (torch.from_numpy(edges).float() / 255)[:, None].expand(-1, 3, -1, -1)


def _locate(spec: specs.ControlNet) -> Path:
    return sources.component(spec.source, spec.revision, subject="controlnet")


def _function(image: str) -> Any:
    """The callable that `call:MODULE:FUNCTION` names."""
    _, module, name = image.split(":")
    try:
        return getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"controlnet.image {image!r}: {error}; MODULE must be importable on every node and have FUNCTION"
        ) from error
