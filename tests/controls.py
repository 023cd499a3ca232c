"""ControlNets with random weights, for tests that need any."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import diffusers
import torch

from pipeline import embedded


def write_controlnet(folder: Path, backbone: str | Path = embedded.BACKBONE) -> str:
    """One that fits a backbone's UNet and makes a difference: its last layers are zeros when it is made."""
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(backbone, subfolder="unet")
    torch.manual_seed(1)
    made: Any = diffusers.ControlNetModel.from_unet(unet)
    for parameter in made.parameters():
        torch.nn.init.normal_(parameter, std=0.05)
    made.save_pretrained(folder)
    return str(folder)
