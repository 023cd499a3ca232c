"""What generating pictures takes beside the network: DDIM with a checkpoint's noise, and the VAE's other half."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import torch
from diffusers import DDIMScheduler
from numpy.typing import NDArray
from torch import Tensor

from pipeline import checkpoint
from pipeline.backbone import Backbone, load_module


class Decoder:
    """Latents to pixels: a backbone itself keeps no decoder. In float32, whatever the backbone computes in."""

    def __init__(self, backbone: Backbone) -> None:
        self._vae: Any = None
        if backbone.vae_class is not None:
            folder = backbone.folder / "vae"
            self._vae = load_module(backbone.vae_class, folder, dtype=torch.float32, device=backbone.device)
            del self._vae.encoder

    @torch.no_grad()
    def __call__(self, latents: Tensor) -> NDArray[np.uint8]:
        """RGB pictures [n, H, W, 3] of latents as the network has them, float32 [n, c, h, w]; each by itself."""
        images = (self._decoded(latents) / 2 + 0.5).clamp(0, 1).mul(255).round().to(torch.uint8)
        return images.permute(0, 2, 3, 1).cpu().numpy()

    def _decoded(self, latents: Tensor) -> Tensor:
        """Images [n, 3, H, W] in [-1, 1]; the latents themselves of networks that work on pixels."""
        if self._vae is None:
            return latents
        config = self._vae.config
        unscaled = latents / config.scaling_factor + (config.get("shift_factor") or 0.0)
        return torch.cat([self._vae.decode(one, return_dict=False)[0] for one in unscaled.split(1)])


def ddim(folder: Path) -> Any:
    """DDIM with the noise schedule of a checkpoint's own scheduler, whatever that is."""
    options = {"clip_sample": False, **checkpoint.config(folder, "scheduler")}
    if options.get("timestep_spacing") == "linspace":
        # Its times are not as far apart as DDIM's steps are long, so that the network would be told too little noise.
        options["timestep_spacing"] = "leading"
    return DDIMScheduler.from_config(options)
