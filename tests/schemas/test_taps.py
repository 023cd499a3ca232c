from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import load_file

from schemas import taps

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def config(model: str, **changes: Any) -> dict[str, Any]:
    return {**json.loads((GOLDEN / model / "unet" / "config.json").read_text()), **changes}


SD15, SDXL_TINY = config("sd15-tiny"), config("sdxl-tiny")
SDXL = {**SDXL_TINY, "transformer_layers_per_block": [1, 2, 10]}
UP = "up-level{}-upsampler-out"


@pytest.mark.parametrize(("unet_config", "count"), [(SD15, 197), (SDXL_TINY, 276), (SDXL, 612)])
def test_every_tap_has_a_name_once(unet_config: dict[str, Any], count: int) -> None:
    found = taps.names(unet_config)
    assert len(found) == len(set(found)) == count


@pytest.mark.parametrize(("unet_config", "file"), [(SD15, "dev.sd15.all"), (SDXL_TINY, "dev.sdxl.all")])
def test_names_are_the_reference_s(unet_config: dict[str, Any], file: str) -> None:
    stored = load_file(GOLDEN / f"{file}.safetensors")
    assert set(taps.names(unet_config)) == {name for name in stored if not name.startswith("__")}


def test_old_config_without_later_keys() -> None:
    """SD 1.5's own config.json predates mid_block_type and transformer_layers_per_block."""
    old = {key: SD15[key] for key in ("down_block_types", "up_block_types", "layers_per_block")}
    assert taps.names(old) == taps.names(SD15)


def test_kinds() -> None:
    attention = [name for name in taps.names(SD15) if taps.kind(name) == "attention"]
    assert len(attention) == 2 * 16 and all(name.endswith(("self-map", "cross-map")) for name in attention)


@pytest.mark.parametrize(
    ("tap", "want"),
    [
        ("mid-vit-block0-self-map", taps.Map("mid-vit-block0-self-map")),
        ("mid-vit-block0-self-map-pooled16", taps.Map("mid-vit-block0-self-map", pool=16)),
        ("vit-block0-dual-map-mean", taps.Map("vit-block0-dual-map", over_heads=True)),
        ("attn", None),
        ("mid-vit-out", None),
    ],
)
def test_maps_and_their_reductions(tap: str, want: taps.Map | None) -> None:
    assert taps.as_map(tap) == want
    assert taps.kind(tap) == ("map" if want is None else "attention")


def test_what_is_about_single_tokens() -> None:
    found = [tap for tap in [*taps.names(SD15), *MADE] if taps.by_token(tap)]
    assert all("cross-map" in tap or tap == "attn" for tap in found) and len(found) == 16 + 2


@pytest.mark.parametrize(
    ("tap", "message"),
    [
        ("mid-vit-block0-self-map-pooled3", "cells of 3 tokens; allowed are powers of two from 2"),
        ("mid-vit-block0-self-map-pooled1", "cells of 1 tokens"),
        (
            "mid-vit-block0-cross-map-pooled2",
            "only self-maps are pooled, since a prompt's tokens are no grid",
        ),
        ("mid-vit-block1-self-map-pooled2", "is no tap of this network; nearest: mid-vit-block0-self-map"),
    ],
)
def test_wrong_reductions(tap: str, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        taps.resolve(tap, SD15)


def test_attn_needs_cross_attention() -> None:
    plain = {
        **SD15,
        "down_block_types": ["DownBlock2D"],
        "up_block_types": ["UpBlock2D"],
        "mid_block_type": None,
    }
    with pytest.raises(
        ValueError, match="'attn' is made of cross-attention maps, of which this network has none"
    ):
        taps.resolve("attn", plain)


def test_sets_of_each_network() -> None:
    """A set that a network has not is left out; `middle` is DIFT's tap with SD's layout, and has one in all."""
    assert list(taps.sets(SD15)) == ["legacy", "practical", "middle"]
    assert taps.sets(SDXL)["middle"] == [UP.format(1)] == taps.sets(SD15)["middle"]
    assert list(taps.sets(SDXL_TINY)) == ["legacy", "middle"]
    flux = {"_class_name": "FluxTransformer2DModel", "num_layers": 19, "num_single_layers": 38}
    assert taps.sets(flux) == {"middle": ["vit-block28-norm"]}
    with pytest.raises(
        ValueError, match="'legacy' is not defined for networks like this one; its sets are middle"
    ):
        taps.resolve("legacy", flux)


def test_legacy_follows_the_levels() -> None:
    """The up level without upsampler ends with attention in SD 1.5, and with a residual unit in SDXL."""
    sd15 = [*(UP.format(level) for level in range(3)), "up-level3-repeat2-vit-out"]
    assert taps.resolve("legacy", SD15) == sd15
    assert taps.resolve("legacy", SDXL) == [UP.format(0), UP.format(1), "up-level2-repeat2-res-out"]


def test_practical_is_the_network_s_own() -> None:
    """SD 1.5's selection must not be taken for SDXL, even where names exist in both."""
    assert "up-level3-repeat0-vit-block0-self-k" in taps.resolve("practical", SD15)
    assert "up-level0-repeat0-vit-block7-out" in taps.resolve("practical", SDXL)
    with pytest.raises(ValueError, match=r"'practical' is defined for networks with the layout of SD 1\.x"):
        taps.resolve("practical", SDXL_TINY)


MADE = ["attn", "mid-vit-block0-self-map-pooled2", "up-level1-repeat0-vit-block0-cross-map-mean"]


@given(st.lists(st.sampled_from([*taps.SETS, *taps.names(SD15), *MADE]), min_size=1, max_size=20))
def test_resolve_orders_and_unites(requested: list[str]) -> None:
    """What is made of a site stands behind it, and `attn` behind all."""
    resolved, known = taps.resolve(requested, SD15), [*taps.names(SD15), "attn"]
    expected = {
        tap for name in requested for tap in (taps.resolve(name, SD15) if name in taps.SETS else [name])
    }
    assert len(resolved) == len(expected) and set(resolved) == expected

    def place(tap: str) -> tuple[int, str]:
        return known.index(tap.removesuffix("-pooled2").removesuffix("-mean")), tap

    assert [place(tap) for tap in resolved] == sorted(place(tap) for tap in expected)


@pytest.mark.parametrize(
    ("wrong", "nearest"),
    [
        ("up-level1-repeat1-vit-block0-crossq", "up-level1-repeat1-vit-block0-cross-q"),
        ("legasy", "legacy"),
        ("up-level1-repeat3-res-out", "up-level1-repeat2-res-out"),
    ],
)
def test_wrong_name_says_what_is_near_and_allowed(wrong: str, nearest: str) -> None:
    allowed = "allowed are this network's 197 taps, 'attn' and the sets legacy, practical, middle"
    with pytest.raises(
        ValueError, match=f"^'{wrong}' is no tap of this network; nearest: {nearest}\\b.*; {allowed} "
    ):
        taps.resolve(["unet-in", wrong], SD15)


def test_nothing_near() -> None:
    with pytest.raises(ValueError, match=r"^'%%' is no tap of this network; allowed are"):
        taps.resolve("%%", SD15)


def test_no_name_at_all() -> None:
    """An empty list would mean a network that never stops and rows without arrays."""
    with pytest.raises(
        ValueError, match="no tap is named; allowed are this network's 197 taps, 'attn' and the sets legacy"
    ):
        taps.resolve([], SD15)


@pytest.mark.parametrize(
    ("unet_config", "message"),
    [
        (
            {"_class_name": "AuraFlowTransformer2DModel"},
            "taps have no names in a AuraFlowTransformer2DModel; they have in UNet2DConditionModel, PixArt",
        ),
        ({"_class_name": "FluxTransformer2DModel"}, "config of a FluxTransformer2DModel has no num_layers"),
        (
            {"sample_size": 8},
            "not the config of a UNet2DConditionModel: it has no down_block_types and no up_",
        ),
        (
            {**SD15, "down_block_types": ["KDownBlock2D"]},
            "blocks of type KDownBlock2D; taps are known for DownBlock2D",
        ),
    ],
)
def test_configs_of_other_networks(unet_config: dict[str, Any], message: str) -> None:
    with pytest.raises(ValueError, match=message):
        taps.names(unet_config)
