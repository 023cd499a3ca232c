"""The same backbone with a network that has learned nothing."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import torch

from pipeline.backbone import Backbone


def write_untrained(backbone: Backbone, folder: Path, seed: int = 0) -> None:
    """A diffusers folder like the backbone's, but for the network's weights, which are random by the seed."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        network: Any = type(backbone.network).from_config(backbone.network.config)
    shutil.copytree(backbone.folder, folder, dirs_exist_ok=True)
    part = folder / backbone.network_part
    for file in part.glob("*.safetensors"):
        file.unlink()
    network.save_pretrained(part)
