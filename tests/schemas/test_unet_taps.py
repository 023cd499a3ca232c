"""Names in DeepFloyd IF's UNet; those of Stable Diffusion are in test_taps.py, beside the reference's."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import taps

IF: dict[str, Any] = {
    "_class_name": "UNet2DConditionModel",
    "down_block_types": ["ResnetDownsampleBlock2D", *["SimpleCrossAttnDownBlock2D"] * 3],
    "mid_block_type": "UNetMidBlock2DSimpleCrossAttn",
    "up_block_types": [*["SimpleCrossAttnUpBlock2D"] * 3, "ResnetUpsampleBlock2D"],
    "layers_per_block": 3,
    "in_channels": 3,
}


def sites(config: dict[str, Any], unit: str) -> list[str]:
    return [tap.removeprefix(f"{unit}-vit-") for tap in taps.names(config) if tap.startswith(f"{unit}-vit-")]


def test_an_attention_layer_is_named_as_a_transformer_of_one_block() -> None:
    block = ["self-q", "self-k", "self-v", "self-map", "cross-map"]
    assert sites(IF, "mid") == [*(f"block0-{site}" for site in block), "out"]
    ends, resamplers, residual_units, layers = 3, 6, 12 + 2 + 16, 9 + 1 + 12
    assert len(taps.names(IF)) == ends + resamplers + 2 * residual_units + 6 * layers
    assert taps.resolve("legacy", IF)[-1] == "up-level3-repeat3-res-out"


@pytest.mark.parametrize(
    ("changes", "crossing"),
    [
        (
            {"only_cross_attention": True},
            {"down-level1-repeat0", "mid", "up-level0-repeat0", "up-level2-repeat0"},
        ),
        ({"only_cross_attention": [False, False, False, True]}, {"up-level0-repeat0"}),
        ({"mid_block_only_cross_attention": True}, {"mid"}),
    ],
)
def test_layers_that_attend_to_the_prompt_alone(changes: dict[str, Any], crossing: set[str]) -> None:
    """As diffusers reads the config: up levels in reverse, the mid block with a rule of its own."""
    config = {**IF, **changes}
    units = ["down-level1-repeat0", "mid", "up-level0-repeat0", "up-level2-repeat0"]
    found = {unit for unit in units if sites(config, unit) == ["block0-cross-q", "block0-cross-map", "out"]}
    assert found == crossing
