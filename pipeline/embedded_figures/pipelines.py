"""Stock diffusers pipelines of a backbone's folder, to generate pictures with DDIM."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import (
    ControlNetModel,
    DDIMScheduler,
    StableDiffusionControlNetPipeline,
    StableDiffusionPipeline,
)
from numpy.typing import NDArray
from torch import Tensor

from pipeline import device as devices
from pipeline.backbone import load_module

_BATCH = 16
GUIDANCE = 3.0


def text_to_image(backbone: Path) -> Any:
    """A `StableDiffusionPipeline` on the device, without a safety checker, whose scheduler is DDIM."""
    pipe: Any = StableDiffusionPipeline.from_pretrained(
        backbone,
        safety_checker=None,
        requires_safety_checker=False,
        use_safetensors=True,
        local_files_only=True,
        dtype=torch.float32,
    )
    own = {name: value for name, value in pipe.scheduler.config.items() if name != "_use_default_values"}
    pipe.scheduler = DDIMScheduler.from_config({"clip_sample": False, **own})
    pipe.set_progress_bar_config(disable=True)
    return pipe.to(devices.choose("auto"))


def controlled(pipe: Any, controlnet: Path) -> Any:
    """The same pipeline with a ControlNet, which shares all of its networks."""
    control = load_module(ControlNetModel, controlnet, dtype=torch.float32, device=pipe.device)
    made: Any = StableDiffusionControlNetPipeline(
        **{name: part for name, part in pipe.components.items() if name != "safety_checker"},
        controlnet=control,
        safety_checker=None,
        requires_safety_checker=False,
    )
    made.set_progress_bar_config(disable=True)
    return made


def generate(
    pipe: Any,
    prompts: Sequence[str],
    *,
    steps: int,
    guidance: float = GUIDANCE,
    controls: Tensor | None = None,
    size: tuple[int, int] | None = None,
) -> NDArray[np.uint8]:
    """Pictures RGB [prompts, H, W, 3] from noise that depends on a prompt's place only.

    Args:
        pipe: as `text_to_image` or `controlled` gave it.
        prompts: one a picture.
        steps: of DDIM.
        guidance: classifier-free; 1 is none.
        controls: of a controlled pipeline, float [prompts, 3, H, W] in [0, 1].
        size: (H, W) in pixels; default: what the network was trained at.
    """
    found = []
    for start in range(0, len(prompts), _BATCH):
        part = slice(start, start + _BATCH)
        places = range(len(prompts))[part]
        options: dict[str, Any] = {} if controls is None else {"image": controls[part]}
        if size is not None:
            options |= {"height": size[0], "width": size[1]}
        made = pipe(
            list(prompts[part]),
            num_inference_steps=steps,
            guidance_scale=guidance,
            generator=[torch.Generator("cpu").manual_seed(place) for place in places],
            output_type="np",
            **options,
        )
        found.append(np.rint(made.images * 255).astype(np.uint8))
    return np.concatenate(found)
