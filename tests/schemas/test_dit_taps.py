"""Names of transformers' taps, from configs of full size."""

from __future__ import annotations

from typing import Any

import pytest

from schemas import taps

PIXART = {"_class_name": "PixArtTransformer2DModel", "num_layers": 28, "patch_size": 2}
SD35 = {"_class_name": "SD3Transformer2DModel", "num_layers": 24, "dual_attention_layers": list(range(13))}
FLUX = {"_class_name": "FluxTransformer2DModel", "num_layers": 19, "num_single_layers": 38}


def sites(config: dict[str, Any], block: int) -> list[str]:
    prefix = f"vit-block{block}-"
    return [tap.removeprefix(prefix) for tap in taps.names(config) if tap.startswith(prefix)]


@pytest.mark.parametrize(("config", "count"), [(PIXART, 28 * 9), (SD35, 24 * 8 + 13 * 4), (FLUX, 57 * 8)])
def test_every_tap_has_a_name_once(config: dict[str, Any], count: int) -> None:
    found = taps.names(config)
    assert len(found) == len(set(found)) == count + 3
    assert found[:2] == ["dit-in", "dit-after-embed"] and found[-1] == "dit-out"


def test_blocks_of_each_kind() -> None:
    """One stream computes its feed-forward layer before its attention; some blocks of SD 3.5 attend twice."""
    assert sites(FLUX, 18) == [
        "norm",
        "self-q",
        "self-k",
        "self-v",
        "self-map",
        "cross-map",
        "ffn-inner",
        "out",
    ]
    assert sites(FLUX, 19) == [
        "norm",
        "ffn-inner",
        "self-q",
        "self-k",
        "self-v",
        "self-map",
        "cross-map",
        "out",
    ]
    assert sites(FLUX, 56) and not sites(FLUX, 57)
    assert "dual-map" in sites(SD35, 12) and "dual-map" not in sites(SD35, 13)
    assert "cross-q" in sites(PIXART, 0)


def test_pixart_s_checkpoints_name_an_older_class() -> None:
    old = {**PIXART, "_class_name": "Transformer2DModel", "norm_type": "ada_norm_single"}
    assert taps.names(old) == taps.names(PIXART)
    with pytest.raises(ValueError, match="taps have no names in a Transformer2DModel"):
        taps.names({**old, "norm_type": "layer_norm"})


@pytest.mark.parametrize(("config", "middle"), [(PIXART, 14), (SD35, 12), (FLUX, 28)])
def test_middle_is_the_normalisation_half_way(config: dict[str, Any], middle: int) -> None:
    assert taps.resolve("middle", config) == [f"vit-block{middle}-norm"]


def test_reductions_and_attn() -> None:
    asked = ["attn", "vit-block3-self-map-pooled8", "vit-block3-self-map", "vit-block3-self-map-pooled2"]
    assert taps.resolve(asked, FLUX) == [asked[2], asked[3], asked[1], "attn"]
