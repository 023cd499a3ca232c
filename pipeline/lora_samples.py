"""What a LoRA has learned, as pictures: prompts generated without and with it, from the same noise."""

from __future__ import annotations

from collections.abc import Sequence
from io import BytesIO
from pathlib import Path

import numpy as np
import torch
from fsspec.implementations.local import LocalFileSystem
from numpy.typing import NDArray

from pipeline import storage
from pipeline.backbone import Backbone, Text
from pipeline.generation import Decoder, ddim
from pipeline.lora_weights import without_factors
from pipeline.picture import Column, Label, draw
from schemas.lora import Samples

Pictures = list[NDArray[np.uint8]]
"""[H, W, 3] each."""


def picture_name(step: int) -> str:
    """File of a step's picture in the work folder."""
    return f"samples-{step:06d}.png"


class Sampler:
    """Generates a few prompts.

    Args:
        backbone: with a LoRA's factors beside its network's layers.
        prompts: of the pictures.
        text: of these prompts, and of the empty one behind them.
        image_size: [H, W] in pixels.
        spec: how many steps, how much guidance.
        seed: of the noise.
    """

    def __init__(
        self,
        backbone: Backbone,
        prompts: Sequence[str],
        text: Text,
        image_size: Sequence[int],
        spec: Samples,
        seed: int,
    ) -> None:
        self._backbone, self._prompts, self._spec = backbone, list(prompts), spec
        count = len(self._prompts)
        rows = [*range(count), *([count] * count)]
        self._text = {name: value[rows] for name, value in text.items()}
        shape = (count, *backbone.latent_shape(backbone.folder, image_size))
        self._noise = torch.randn(shape, generator=torch.Generator().manual_seed(seed)).to(backbone.device)
        self._decode = Decoder(backbone)
        self._without: Pictures | None = None

    def write(self, folder: Path, step: int) -> None:
        """Write a grid, a row a prompt, unless the step's picture is there."""
        path = folder / picture_name(step)
        if path.exists():
            return
        if self._without is None:
            with without_factors(self._backbone.network):
                self._without = self.generate()
        columns = [
            Column("", "without", "", self._without),
            Column("", "with", f"after {step:,} steps", self.generate()),
        ]
        height, width = self._without[0].shape[:2]
        grid = draw(columns, [Label(prompt, "") for prompt in self._prompts], {}, height / width)
        buffer = BytesIO()
        grid.save(buffer, "PNG")
        storage.put(LocalFileSystem(), str(path.absolute()), buffer.getvalue())

    @torch.no_grad()
    def generate(self) -> Pictures:
        """A picture of each prompt, by the network as it is now; deterministic DDIM (Song et al. 2021, eq. 12)."""
        backbone, network, count = self._backbone, self._backbone.network, len(self._prompts)
        scheduler = ddim(backbone.folder)
        scheduler.set_timesteps(self._spec.steps, device=backbone.device)
        latents = self._noise * scheduler.init_noise_sigma
        for time in scheduler.timesteps:
            both = torch.cat([latents, latents]).to(backbone.dtype)
            output = network(**backbone.inputs(network, both, time, self._text), return_dict=False)[0]
            conditional, blank = backbone.estimate(output, both).float().split(count)
            guided = blank + self._spec.guidance * (conditional - blank)
            latents = scheduler.step(guided, time, latents, return_dict=False)[0]
        return list(self._decode(latents))
