from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from diffusers import UNet2DConditionModel
from safetensors.torch import load_file

from pipeline import attn
from pipeline.recorder import config_of
from pipeline.taps import record
from schemas.taps import names
from tests import networks

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
LEVELS = {
    "down_block_types": ["CrossAttnDownBlock2D"] * 3 + ["DownBlock2D"],
    "up_block_types": ["UpBlock2D"] + ["CrossAttnUpBlock2D"] * 3,
}
PIXART = {"_class_name": "PixArtTransformer2DModel", "num_layers": 2, "patch_size": 2}
IF = networks.CONFIGS["deepfloyd"][1]


def test_parity_with_the_reference() -> None:
    """Two resolutions of three layers each, the coarser first: the order of channels is a contract."""
    stored = load_file(GOLDEN / "dev.sd15.attn.safetensors")
    unet: Any = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny" / "unet")
    call = (stored["__unet_input"], stored["__timestep"], stored["__prompt_embeds"])
    maps = record(SimpleNamespace(unet=unet), *call, [*attn.sources(unet.config), "attn"])
    recorded = maps.pop("attn")
    found = attn.aggregate(maps, (8, 8))
    assert len(maps) == 6 and found.shape == stored["attn"].shape == (1, 154, 8, 8)
    assert (found - stored["attn"]).norm() / stored["attn"].norm() < 5e-6
    assert torch.equal(found, recorded)
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


@pytest.mark.parametrize(
    ("config", "choice", "message"),
    [
        (
            LEVELS,
            {"strides": (64, 64)},
            "no cross-attention in the stages up at image/64 to image/64; it has some at image/8, image/16, image/32",
        ),
        (
            {**LEVELS, "mid_block_type": None},
            {"stages": ["mid"]},
            "in the stages mid at .*; name other stages",
        ),
        (PIXART, {"strides": (8, 8)}, "no cross-attention at image/8 to image/8; it has some at image/16"),
        (PIXART, {"stages": ["up"]}, "stages are up, and transformers have none; leave them out"),
        (IF, {}, "image/16 to image/32; it has some at image/2"),
    ],
)
def test_no_layer_left(config: dict[str, Any], choice: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        attn.sources(config, **choice)


@pytest.mark.parametrize("name", ["pixart", "hunyuan", "sd3", "flux"])
def test_transformers(name: str) -> None:
    """All blocks at the one resolution; in joint attention the prompt's share of the softmax."""
    network, text = networks.network(name), networks.text(name)
    maps = [tap for tap in names(config_of(network)) if tap.endswith("-cross-map")]
    found = record(
        SimpleNamespace(transformer=network),
        networks.latents(name),
        261.0,
        text.pop("prompt_embeds"),
        [*maps, "attn"],
        **text,
    )
    assert list(found)[-1] == "attn" and len(maps) == len([tap for tap in found if "map" in tap])
    mean = torch.stack([found[tap].mean(1) for tap in maps]).mean(0)  # [B, 4 x 6, tokens]
    assert found["attn"].shape == (1, mean.shape[2], 8, 12)
    assert torch.allclose(found["attn"][0, :, 5, 11], mean[0, 2 * 6 + 5])


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
