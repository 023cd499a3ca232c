"""ControlNet: residuals from a control image, added to the UNet's own skip connections and mid block."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import cv2
import numpy as np
import torch
from diffusers import ControlNetModel, UNet2DConditionModel
from numpy.typing import NDArray
from torch import Tensor

from pipeline import checkpoint, sources
from pipeline.backbone import Backbone, load_module
from pipeline.techniques.base import Pictures, Technique
from schemas import techniques as specs

_SAME = (
    "block_out_channels",
    "layers_per_block",
    "cross_attention_dim",
    "in_channels",
    "addition_embed_type",
)
"""What a ControlNet's config must have in common with the UNet's."""
_SHARED = ("sample", "timestep", "encoder_hidden_states")
_SHARED_SDXL = ("text_embeds", "time_ids")


class ControlNet(Technique[specs.ControlNet]):
    """Gets the same latents, timestep and text as the UNet, and an image of the sample."""

    def __init__(self, spec: specs.ControlNet, backbone: Backbone) -> None:
        super().__init__(spec, backbone)
        folder = _locate(spec)
        if str(folder) not in backbone.extras:
            backbone.extras[str(folder)] = load_module(
                ControlNetModel, folder, dtype=backbone.dtype, device=backbone.device
            )
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
        embedding = control.get("conditioning_embedding_out_channels") or (16, 32, 96, 256)
        if control.get("conditioning_channels", 3) != 3 or len(embedding) != 4:
            raise ValueError(
                f"controlnet {spec.source!r} takes {control.get('conditioning_channels', 3)} channels, reduced"
                f" {2 ** (len(embedding) - 1)} times; control images have 3, and latents are 8 times smaller"
            )
        for key in _SAME:
            if control.get(key) != unet.get(key):
                raise ValueError(
                    f"controlnet {spec.source!r} does not fit the backbone: its {key} is {control.get(key)}, the UNet's"
                    f" is {unet.get(key)}; take one that was trained for this backbone"
                )
        files = {f"controlnet/{path}": value for path, value in checkpoint.fingerprint_part(found).items()}
        if spec.image.startswith("call:"):
            _function(spec.image)
            files[spec.image] = checkpoint.sha256(_file_of(spec.image))
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
            images = _called(self.spec.image, pictures.pixels)
        return images.to(self.backbone.device, self.backbone.dtype)

    def steer(self, seen: Tensor | None, inputs: dict[str, Any]) -> dict[str, Any]:
        assert seen is not None
        return add_residuals(self._network, inputs, seen, self.spec.scale)


def add_residuals(network: Any, inputs: dict[str, Any], image: Tensor, scale: float = 1.0) -> dict[str, Any]:
    """A UNet's arguments with a ControlNet's residuals, beside those of others that are there.

    Args:
        network: the ControlNet, which gets the latents, timestep and text that are in `inputs`.
        inputs: the UNet's keyword arguments.
        image: [B, 3, 8h, 8w] in [0, 1], on the network's device and in its dtype.
        scale: of the residuals.
    """
    own = {name: inputs[name] for name in _SHARED}
    if "added_cond_kwargs" in inputs:
        given = inputs["added_cond_kwargs"]
        own["added_cond_kwargs"] = {name: given[name] for name in _SHARED_SDXL if name in given}
    down, mid = network(**own, controlnet_cond=image, conditioning_scale=scale, return_dict=False)
    if "mid_block_additional_residual" in inputs:  # another ControlNet was there before
        down = [a + b for a, b in zip(inputs["down_block_additional_residuals"], down, strict=True)]
        mid = inputs["mid_block_additional_residual"] + mid
    return inputs | {
        "down_block_additional_residuals": tuple(down),
        "mid_block_additional_residual": mid,
    }


def canny_edges(pixels: NDArray[np.uint8], low: int, high: int) -> NDArray[np.uint8]:
    """Edges [n, H, W], 0 or 255, of RGB pictures [n, 3, H, W]; what ControlNets are trained on as well."""
    return np.stack([cv2.Canny(np.ascontiguousarray(one.transpose(1, 2, 0)), low, high) for one in pixels])


def canny(pictures: Pictures, low: int, high: int) -> Tensor:
    """Edges of pictures by OpenCV's Canny, float32 [B, 3, H, W] in {0, 1}, three equal channels.

    The line where a picture meets padding is no edge of the picture, and left out.
    """
    edges = canny_edges(pictures.pixels, low, high)
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
        found = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError) as error:
        raise ValueError(
            f"controlnet.image {image!r}: {error}; MODULE must be importable on every node and have FUNCTION"
        ) from error
    if not callable(found):
        raise ValueError(f"controlnet.image {image!r}: is a {type(found).__name__}, and must be a function")
    return found


def _file_of(image: str) -> Path:
    """The file of the module that `call:MODULE:FUNCTION` names, by whose content the function is known."""
    module = importlib.import_module(image.split(":")[1])
    if (file := getattr(module, "__file__", None)) is None:
        raise ValueError(
            f"controlnet.image {image!r}: the module has no file; write the function in one of yours"
        )
    return Path(file)


def _called(image: str, pixels: np.ndarray) -> Tensor:
    """What the user's function makes of a copy of the pixels.

    Raises:
        ValueError: the function failed, or what it gave are no control images.
    """
    try:
        found = torch.as_tensor(_function(image)(pixels.copy()))
    except Exception as error:  # a user's code may raise anything
        raise ValueError(f"controlnet.image {image!r} failed: {type(error).__name__}: {error}") from error
    if found.shape != pixels.shape or not found.is_floating_point() or found.min() < 0 or found.max() > 1:
        raise ValueError(
            f"controlnet.image {image!r} gave {str(found.dtype).removeprefix('torch.')} {list(found.shape)} from"
            f" {float(found.min()):g} to {float(found.max()):g} for pixels {list(pixels.shape)}; control images are"
            " floats in [0, 1] of the pixels' shape"
        )
    return found
