"""Features of scenes by the product's own engine: many groups of one backbone, each picture encoded once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline import checkpoint
from pipeline.embedded_figures.scenes import Scene
from pipeline.extractor import FeatureExtractor
from schemas.spec import ExtractSpec
from schemas.taps import resolve

PROMPT = "a photo"
"""Of groups without a caption."""
BATCH = 32
"""Images a pass."""


def legacy_taps(backbone: Path) -> list[str]:
    """The output of every up level, coarsest first."""
    return resolve("legacy", checkpoint.config(backbone, "unet"))


def clean(name: str) -> dict[str, Any]:
    """The group that has no shift: clean latents at t = 0, FEAT_ref of Eq. 1."""
    return {"name": name, "timestep": 0, "techniques": [{"type": "no-noise"}]}


def extract(
    backbone: Path, scenes: Sequence[Scene], groups: Sequence[Mapping[str, Any]], dtype: str
) -> dict[str, NDArray[Any]]:
    """Features at the legacy taps.

    Args:
        backbone: a diffusers folder.
        scenes: of one size.
        groups: what `schemas.groups.Group` has; a group without a prompt gets `PROMPT`.
        dtype: float16 or float32, of the features; the network computes in float32.

    Returns:
        {"group/tap": [scenes, C, h, w]}.

    Raises:
        ValueError: a technique that does not fit the backbone, or features beyond the dtype.
    """
    spec = ExtractSpec.model_validate(
        {
            "version": 1,
            "store": "none",
            "input": {"shards": "none"},
            "image_size": list(scenes[0].pixels.shape[:2]),
            "backbone": {"source": str(backbone), "batch_size": min(BATCH, len(scenes))},
            "groups": [{"prompt": PROMPT, "taps": "legacy", **group} for group in groups],
            "output": {"dtype": dtype},
            "cluster": {"cpus_per_actor": torch.get_num_threads()},
        }
    )
    return FeatureExtractor(spec)(
        [np.ascontiguousarray(scene.pixels) for scene in scenes],
        ids=[scene.id for scene in scenes],
        captions=[scene.caption for scene in scenes],
    )
