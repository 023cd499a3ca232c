"""The same backbone with a network that has learned nothing."""

from __future__ import annotations

import shutil
from pathlib import Path

from pipeline.backbone import Backbone
from pipeline.embedded_figures.probes import untrained


def write_untrained(backbone: Backbone, folder: Path, seed: int = 0) -> None:
    """A diffusers folder like the backbone's, but for the network's weights, which are random by the seed."""
    shutil.copytree(backbone.folder, folder, dirs_exist_ok=True)
    part = folder / backbone.network_part
    for file in part.glob("*.safetensors"):
        file.unlink()
    untrained(backbone, seed).save_pretrained(part)
