"""What a spec's taps become: arrays with shapes, or a refusal that names what is wrong."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from diffusers import UNet2DConditionModel

from pipeline import checkpoint, embedded
from pipeline.layouts import layouts, wrong_taps
from schemas import taps as vocabulary
from tests.engines import TAPS, group, make_batch, make_engine, make_spec

EMBEDDED = Path(embedded.BACKBONE)


def test_layouts_are_what_the_network_gives() -> None:
    spec = make_spec(
        group("all", taps=vocabulary.names(layouts_config()), prompt="{caption}", per_image_attention=True),
        group("some", taps=["up-level1-upsampler-out", {"name": TAPS[0], "dtype": "float32"}]),
        backbone={"batch_size": 1},
    )
    features = make_engine(spec).run(make_batch(["a"]))
    planned = layouts(spec, EMBEDDED)
    assert [(one.group, one.tap) for one in planned] == list(features.maps)
    for one in planned:
        stored = features.maps[one.group, one.tap]
        assert list(stored.shape[1:]) == one.shape and stored.dtype == one.dtype
        assert features.pooled[one.group, one.tap].shape == (1, one.shape[0])


def layouts_config() -> dict[str, Any]:
    return dict(UNet2DConditionModel.load_config(EMBEDDED, subfolder="unet"))


@pytest.mark.parametrize(
    "taps", [["legacy", {"name": "x", "dtype": "float32"}], [{"name": "x", "dtype": "float32"}, "legacy"]]
)
def test_a_tap_beside_its_set_keeps_its_dtype(taps: list[Any]) -> None:
    """As the probe proposes it for one tap of a set; a set named after the tap took the dtype back."""
    taps = [tap if tap == "legacy" else tap | {"name": "up-level0-upsampler-out"} for tap in taps]
    dtypes = {one.tap: one.dtype for one in layouts(make_spec(group(taps=taps)), EMBEDDED)}
    assert len(dtypes) == 4 and dtypes.pop("up-level0-upsampler-out") == "float32"
    assert set(dtypes.values()) == {"float16"}


def test_dtypes_and_order() -> None:
    """A set may have a dtype; taps come in the network's order, each once."""
    spec = make_spec(
        group(taps=[{"name": "legacy", "dtype": "float32"}, TAPS[1]]), output={"dtype": "float16"}
    )
    planned = layouts(spec, EMBEDDED)
    assert [one.tap for one in planned] == vocabulary.resolve(["legacy", TAPS[1]], layouts_config())
    assert {one.tap: one.dtype for one in planned}[TAPS[1]] == "float16"
    assert [one.dtype for one in planned].count("float32") == 4


def test_wrong_taps() -> None:
    """All of them, each with its place in the spec, before any network is built."""
    spec = make_spec(group("first", taps="legac"), group("second", taps=[TAPS[0], "up-level1-upsampler-ou"]))
    with pytest.raises(ValueError) as caught:
        layouts(spec, EMBEDDED)
    first, second = str(caught.value).splitlines()
    assert first.startswith("groups.0.taps: 'legac' is no tap of this network; nearest: legacy")
    assert second.startswith(
        "groups.1.taps.1: 'up-level1-upsampler-ou' is no tap of this network; nearest: up-level1-u"
    )
    assert [path for path, _ in wrong_taps(spec)] == [("groups", 0, "taps"), ("groups", 1, "taps", 1)]


@pytest.mark.parametrize("tap", ["attn", "mid-vit-block0-cross-map"])
def test_attention_by_token_wants_one_prompt(tap: str) -> None:
    """Channel 7 would be another word in every image."""
    varying = group(taps=[tap], prompt="{caption}")
    with pytest.raises(
        ValueError, match=f"group 'plain': the channels of '{tap}' are the prompt's tokens, and"
    ):
        layouts(make_spec(varying), EMBEDDED)
    forced = make_spec(varying | {"per_image_attention": True}, group("fixed", taps=[tap]))
    assert [one.tap for one in layouts(forced, EMBEDDED)] == [tap, tap]


def test_attn_has_a_channel_for_each_resolution_and_token() -> None:
    """The embedded backbone reads 40 tokens; at 64 px its tokens are 16 and 32 pixels wide, as in the reference."""
    some = {"name": "attn", "tokens": [1, 2, 5], "strides": [16, 16]}
    spec = make_spec(
        group(taps=["attn"]), group("some", taps=[some]), group("long", taps=["attn"], text_windows=2)
    )
    assert [one.shape for one in layouts(spec, EMBEDDED)] == [[80, 8, 8], [3, 8, 8], [160, 8, 8]]
    with pytest.raises(ValueError, match=r"attn.tokens has 40, and the prompt's encoding ends at 39"):
        layouts(make_spec(group(taps=[{"name": "attn", "tokens": [40]}])), EMBEDDED)
    with pytest.raises(
        ValueError, match=r"groups.0.taps.0: this network has no cross-attention in the stages up"
    ):
        layouts(make_spec(group(taps=[{"name": "attn", "strides": [1, 2]}])), EMBEDDED)


def test_tiles_make_whole_maps() -> None:
    large: dict[str, Any] = {"image_size": [192, 256]}
    tiles = {"size": [128, 128], "overlap": 64}
    assert layouts(make_spec(group(), **large, tiles=tiles), EMBEDDED) == layouts(
        make_spec(group(), **large), EMBEDDED
    )
    inside = group(taps=["mid-vit-block0-self-map"])
    with pytest.raises(
        ValueError, match="'mid-vit-block0-self-map' relates the places of one pass, which tiles"
    ):
        layouts(make_spec(inside, **large, tiles=tiles), EMBEDDED)


def test_an_oversize_attention_map() -> None:
    """4096 x 4096 tokens are 64 MiB a head and image in float32; a GiB a batch is allowed."""
    heads = checkpoint.config(EMBEDDED, "unet")["attention_head_dim"]
    most = 16 // heads
    taps = ["down-level0-repeat0-vit-block0-self-map"]
    fits = make_spec(group(taps=taps), image_size=[512, 512], backbone={"batch_size": most})
    assert layouts(fits, EMBEDDED)[0].shape == [heads, 4096, 4096]
    gib = heads * (most + 1) / 16
    message = (
        rf"self-map: {most + 1} images x {heads} heads x 4096 x 4096 tokens in float32 are {gib:.2f} GiB,"
        r" .*map .*-pooled2"
    )
    with pytest.raises(ValueError, match=message):
        layouts(
            make_spec(group(taps=taps), image_size=[512, 512], backbone={"batch_size": most + 1}), EMBEDDED
        )
