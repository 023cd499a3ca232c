"""Latents of scenes and the noise that is laid over them: the same numbers as the engine has for a group's seed."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from pipeline import noise
from pipeline.backbone import Backbone
from pipeline.embedded_figures.features import BATCH
from pipeline.embedded_figures.scenes import Scene


@torch.inference_mode()
def encoded(backbone: Backbone, scenes: Sequence[Scene]) -> Tensor:
    """Clean latents, a sample of the posterior as the network takes it: float32 [scenes, c, h, w]."""
    parts = []
    for start in range(0, len(scenes), BATCH):
        part = scenes[start : start + BATCH]
        mean, std = backbone.encode_images(pixels_of(part))
        parts.append(backbone.scale_latents(mean + std * _numbers(part, mean, 0, "posterior")))
    return torch.cat(parts)


def drawn(scenes: Sequence[Scene], latents: Tensor, draw: int) -> Tensor:
    """Standard normal noise that belongs to each scene and to a draw, like `latents` [scenes, c, h, w]."""
    return _numbers(scenes, latents, draw, "noise")


def pixels_of(scenes: Sequence[Scene]) -> Tensor:
    """uint8 [scenes, 3, H, W]."""
    return torch.from_numpy(np.stack([scene.pixels.transpose(2, 0, 1) for scene in scenes]))


def _numbers(scenes: Sequence[Scene], like: Tensor, draw: int, purpose: noise.Purpose) -> Tensor:
    shape = tuple(like.shape[1:])
    found = [
        noise.normal(shape, seed=0, group_seed=draw, purpose=purpose, shard=scene.id[0], key=scene.id[1])
        for scene in scenes
    ]
    return torch.from_numpy(np.stack(found)).to(like.device)
