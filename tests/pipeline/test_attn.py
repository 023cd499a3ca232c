from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from pipeline import attn
from pipeline.taps import record

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}


def test_parity_with_the_reference() -> None:
    """Two resolutions of three layers each, the coarser first: the order of channels is a contract."""
    stored = load_file(GOLDEN / "dev.sd15.attn.safetensors")
    unet: Any = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet")
    call = (stored["__unet_input"], stored["__timestep"], stored["__prompt_embeds"])
    maps = record(SimpleNamespace(unet=unet), *call, attn.sources(unet.config))
    found = attn.aggregate(maps, (8, 8))
    assert len(maps) == 6 and found.shape == stored["attn"].shape == (1, 154, 8, 8)
    assert (found - stored["attn"]).norm() / stored["attn"].norm() < 5e-6
    assert torch.equal(attn.aggregate(maps, (8, 8), [3, 5]), found[:, [3, 5, 77 + 3, 77 + 5]])


@pytest.mark.parametrize(
    ("choice", "prefixes"),
    [
        ({}, {"up-level1", "up-level2"}),
        ({"strides": (8, 8)}, {"up-level3"}),
        ({"stages": ("down", "mid"), "strides": (32, 64)}, {"down-level2", "mid-vit"}),
    ],
)
def test_sources_by_stage_and_stride(choice: dict[str, Any], prefixes: set[str]) -> None:
    found = attn.sources(LEVELS, **choice)
    assert {"-".join(tap.split("-")[:2]) for tap in found} == prefixes


def test_no_layer_left() -> None:
    with pytest.raises(
        ValueError, match="no cross-attention in the stages up at image/64 to image/64; name other"
    ):
        attn.sources(LEVELS, strides=(64, 64))


def test_non_square_and_odd_latents() -> None:
    """Latents of 6 x 10 are halved to 3 x 5 and then, rounding up, to 2 x 3."""
    fine, coarse = torch.rand(2, 4, 15, 7), torch.rand(2, 4, 6, 7)
    found = attn.aggregate({"up-level2-fine": fine, "up-level1-coarse": coarse}, (6, 10))
    assert found.shape == (2, 14, 6, 10)
    assert torch.allclose(found[:, 0, 5, 9], coarse.mean(1)[:, 5, 0])
    assert torch.allclose(found[:, 7, 0, 9], fine.mean(1)[:, 4, 0])


def test_maps_of_other_latents_are_refused() -> None:
    with pytest.raises(ValueError, match="tap x has 16 queries, which is no halving of latents of 6 x 10"):
        attn.aggregate({"x": torch.rand(1, 4, 16, 7)}, (6, 10))
