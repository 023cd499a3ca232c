"""What ships fits together: techniques load onto the backbone by their names, and change its features."""

from __future__ import annotations

import numpy as np
import pytest

from pipeline.embedded_figures.scenes import read_scenes
from pipeline.extractor import FeatureExtractor
from schemas.spec import ExtractSpec

TAP = "up-level2-upsampler-out"


@pytest.mark.parametrize(
    "technique",
    [
        {"type": "controlnet", "source": "embedded/controlnet-canny"},
        {"type": "lora", "source": "embedded/loras/moderate.safetensors"},
        {"type": "lora", "source": "embedded/loras/overfitted.safetensors"},
    ],
    ids=lambda one: one["source"],
)
def test_techniques_of_the_backbone(technique: dict[str, str]) -> None:
    group = {"prompt": "a photo", "t": 50, "taps": TAP}
    spec = ExtractSpec.model_validate(
        {
            "version": 1,
            "store": "none",
            "input": {"shards": "embedded"},
            "image_size": [128, 128],
            "groups": [{"name": "plain", **group}, {"name": "steered", **group, "techniques": [technique]}],
        }
    )
    found = FeatureExtractor(spec)([scene.pixels for scene in read_scenes("embedded", 2)])
    plain, steered = (found[f"{name}/{TAP}"].astype(np.float64) for name in ("plain", "steered"))
    difference = np.linalg.norm(steered - plain) / np.linalg.norm(plain)
    assert 0.01 < difference < 2
