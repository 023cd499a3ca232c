"""What groups may combine: averaged draws, guidance, mirrored pictures, switched weights; and what they share."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import families, sources, techniques
from pipeline.backbone import Backbone
from pipeline.batch import Batch
from pipeline.features import Engine
from pipeline.layouts import layouts
from pipeline.techniques.base import Technique
from schemas import taps as vocabulary
from schemas.techniques import Lora
from tests.engines import TAPS, group, make_batch, make_engine, make_spec
from tests.pictures import of_pictures
from tests.tars import pixels

KEYS = ["a", "b", "c", "d"]
EXACT = [{"name": tap, "dtype": "float32"} for tap in [*TAPS, "unet-out"]]


def run(*groups: dict[str, Any], batch: Batch | None = None, **spec: Any) -> dict[str, dict[str, Tensor]]:
    """{group: {tap: [B, C, h, w]}} of exact taps."""
    exact = [one | {"taps": EXACT} if one["taps"] is TAPS else one for one in groups]
    features = make_engine(make_spec(*exact, **spec)).run(batch or make_batch(KEYS))
    found: dict[str, dict[str, Tensor]] = {}
    for (name, tap), values in features.maps.items():
        found.setdefault(name, {})[tap] = torch.from_numpy(values)
    return found


def near(a: dict[str, Tensor], b: dict[str, Tensor], tolerance: float = 2e-6) -> bool:
    assert a.keys() == b.keys()
    return all(float((a[tap] - b[tap]).norm() / b[tap].norm()) < tolerance for tap in a)


def test_an_average_is_the_mean_of_the_groups_with_its_seeds() -> None:
    found = run(
        *(group(f"s{seed}", seed=seed) for seed in (4, 5, 6)),
        group("mean", seed=4, techniques=[{"type": "average", "seeds": 3}]),
    )
    mean = {tap: sum(found[f"s{seed}"][tap] for seed in (4, 5, 6)) / 3 for tap in found["mean"]}
    assert near(found["mean"], mean)  # type: ignore[arg-type]
    assert not near(found["mean"], found["s4"], 1e-2)


def test_guidance_extrapolates_every_tap() -> None:
    """At unet-out that is classifier-free guidance itself: u + s (c - u)."""
    found = run(
        group("c", prompt="a red bird"),
        group("u", prompt="blurry"),
        group(
            "g",
            prompt="a red bird",
            techniques=[{"type": "guidance", "scale": 3.0, "negative_prompt": "blurry"}],
        ),
        group("one", prompt="a red bird", techniques=[{"type": "guidance", "scale": 1.0}]),
    )
    expected = {tap: found["u"][tap] + 3 * (found["c"][tap] - found["u"][tap]) for tap in found["g"]}
    assert near(found["g"], expected)
    assert near(found["one"], found["c"]) and not near(found["g"], found["c"], 1e-3)


def test_estimates_on_the_way_are_guided_too() -> None:
    """With guidance only at the end, the group would start where the plain one does."""
    denoise = {"type": "denoise", "start": 80}
    guided = {"type": "guidance", "scale": 20.0, "negative_prompt": "blurry"}
    plain = group(
        "plain", prompt="a red bird", techniques=[denoise], taps=[{"name": "unet-in", "dtype": "float32"}]
    )
    found = run(plain, plain | {"name": "guided", "techniques": [denoise, guided]})
    assert not near(found["plain"], found["guided"], 1e-4)


def test_a_flipped_group_is_that_of_the_mirrored_picture() -> None:
    batch = make_batch(KEYS)
    mirrored = of_pictures(batch.ids, np.ascontiguousarray(batch.pixels[..., ::-1]))
    found = run(group("plain"), group("flipped", flip=True), batch=batch)
    other = run(group("plain"), batch=mirrored)["plain"]
    assert all(torch.equal(found["flipped"][tap], other[tap]) for tap in other)
    assert not near(found["plain"], found["flipped"], 1e-2)


def test_the_posterior_s_mean_has_no_draw() -> None:
    taps = [{"name": "unet-in", "dtype": "float32"}]
    clean = {"techniques": [{"type": "no-noise"}], "taps": taps}
    found = run(
        group("a", latents="mean", **clean), group("b", latents="mean", seed=7, **clean), group("c", **clean)
    )
    assert torch.equal(found["a"]["unet-in"], found["b"]["unet-in"])
    assert not torch.equal(found["a"]["unet-in"], found["c"]["unet-in"])


def test_long_prompts_are_read_to_their_end() -> None:
    """The embedded encoder reads 40 tokens: words behind them made no difference."""
    long = "a photo of " + "a red bird and a blue fish " * 8
    found = run(
        group("long", prompt=long + "whale"),
        group("other", prompt=long + "truck"),
        group("cut", prompt=long + "whale", text_windows=1),
        group("cut-other", prompt=long + "truck", text_windows=1),
    )
    assert not near(found["long"], found["other"], 1e-5)
    assert near(found["cut"], found["cut-other"])


def test_two_windows_are_two_encodings_side_by_side() -> None:
    engine = make_engine(make_spec(group(prompt="{caption}")))
    backbone = engine.backbone
    both = backbone.encode_text(["a red bird"], 2)["prompt_embeds"]
    apart = backbone.encode_text(["a red bird", ""])["prompt_embeds"]
    assert torch.equal(both[0], apart.flatten(0, 1))


def test_attn_is_the_same_beside_its_own_sources() -> None:
    """Groups that share a pass may ask for `attn`, other choices of it, and single maps."""
    choice = {"name": "attn", "dtype": "float32", "tokens": [3, 4], "strides": [32, 32]}
    maps = [
        tap
        for tap in vocabulary.names(make_engine(make_spec()).backbone.network.config)
        if "cross-map" in tap
    ]
    found = run(
        group("attn", taps=[{"name": "attn", "dtype": "float32"}]),
        group("some", taps=[choice]),
        group("maps", taps=[{"name": tap, "dtype": "float32"} for tap in maps[-3:]]),
    )
    whole = found["attn"]["attn"]
    assert whole.shape == (4, 80, 8, 8)
    assert torch.equal(found["some"]["attn"], whole[:, [3, 4]])
    assert found["maps"][maps[-1]].shape[3] == 40


@pytest.mark.parametrize(
    ("fields", "kept"),
    [
        ({}, False),
        ({"prompt": "{caption}"}, True),
        ({"techniques": [{"type": "guidance", "scale": 2.0}]}, False),
    ],
)
def test_encoders_go_when_every_prompt_is_fixed(fields: dict[str, Any], kept: bool) -> None:
    """SDXL's take 1.6 GB, SD3's T5 9 GB."""
    engine = make_engine(make_spec(group(), group("other", **fields)))
    assert bool(engine.backbone.encoders) == kept
    engine.run(make_batch(KEYS))


class Switch(Technique[Any]):
    """Weights that count how often they are switched."""

    changes_weights = True

    def __init__(self, spec: Any, backbone: Backbone) -> None:
        super().__init__(spec, backbone)
        self.log: list[str] = backbone.extras.setdefault("log", [])

    def attach(self) -> None:
        self.log.append(f"+{self.spec.source}")
        self.backbone.network.conv_in.bias.data += float(self.spec.source)

    def detach(self) -> None:
        self.log.append(f"-{self.spec.source}")
        self.backbone.network.conv_in.bias.data -= float(self.spec.source)


@pytest.fixture
def switches(monkeypatch: pytest.MonkeyPatch) -> None:
    """LoRAs whose source is a number, added to a bias."""
    monkeypatch.setitem(techniques._CLASSES, Lora, Switch)


def lora(*sources: str) -> list[dict[str, Any]]:
    return [{"type": "lora", "source": source} for source in sources]


def own_engine(*groups: dict[str, Any]) -> Engine:
    """With networks of its own, whose weights may be changed."""
    spec = make_spec(*(one | {"taps": EXACT} for one in groups))
    folder = sources.locate(spec.backbone)
    return Engine(families.load(folder, dtype=torch.float32, device="cpu"), spec, layouts(spec, folder))


@pytest.mark.usefixtures("switches")
def test_weights_are_switched_least() -> None:
    """Groups with the same weights come together, and a batch begins with what the last one ended with."""
    a, b = lora("1"), lora("1", "2")
    engine = own_engine(
        group("p1"),
        group("a1", techniques=a),
        group("p2", seed=1),
        group("a2", techniques=a, seed=1),
        group("b", techniques=b),
    )
    before = engine.calls["switch"]
    for _ in range(3):
        engine.run(make_batch(KEYS))
    assert engine.calls["switch"] - before == 3 * 2, "three sets of weights need two switches a batch"


@pytest.mark.usefixtures("switches")
def test_each_group_has_its_own_weights_in_any_order() -> None:
    groups = [group("p"), group("a", techniques=lora("1")), group("b", techniques=lora("2", "1"))]
    alone = {one["name"]: own_engine(one).run(make_batch(KEYS)).maps for one in groups}
    for order in (groups, groups[::-1], [groups[1], groups[0], groups[2]]):
        engine = own_engine(*order)
        for _ in range(2):  # the second batch begins with other weights
            features = engine.run(make_batch(KEYS))
            for key, values in [item for maps in alone.values() for item in maps.items()]:
                assert np.allclose(features.maps[key], values, rtol=1e-4, atol=1e-4)


def test_padding_does_not_count_in_pooled_vectors() -> None:
    batch = make_batch(["a"])
    batch.boxes[0] = [0, 16, 64, 32]
    spec = make_spec(group(taps=["unet-in"], techniques=[{"type": "no-noise"}]), fit="pad")
    features = make_engine(spec).run(batch)
    maps, pooled = features.maps["plain", "unet-in"], features.pooled["plain", "unet-in"]
    assert np.allclose(pooled[0], maps[0, :, :, 2:6].astype(np.float32).mean((1, 2)), atol=2e-3)
    assert not np.allclose(pooled[0], maps[0].astype(np.float32).mean((1, 2)), atol=2e-2)


def test_tiles_of_the_whole_are_the_whole() -> None:
    spec = make_spec(group(taps=EXACT), tiles={"size": [64, 64], "overlap": 0})
    whole = make_engine(make_spec(group(taps=EXACT))).run(make_batch(KEYS))
    tiled = make_engine(spec).run(make_batch(KEYS))
    for key, values in whole.maps.items():
        assert np.allclose(tiled.maps[key], values, rtol=1e-5, atol=1e-6)


def test_each_tile_is_a_pass_over_its_part_of_picture_and_noise() -> None:
    """`unet-in` is local: tiles must give what one pass over the whole gives, but for the VAE's view of a border."""
    taps = [{"name": "unet-in", "dtype": "float32"}]
    spec = {"image_size": [192, 256]}
    pictures = np.stack([pixels(192, 256).transpose(2, 0, 1)])
    batch = of_pictures([("a.tar", "a")], pictures)
    whole: Any = make_engine(make_spec(group(taps=taps), **spec)).run(batch).maps["plain", "unet-in"]
    engine = make_engine(make_spec(group(taps=taps), **spec, tiles={"size": [128, 128], "overlap": 64}))
    tiled: Any = engine.run(batch).maps["plain", "unet-in"]
    assert tiled.shape == whole.shape and engine.calls["network"] == 6
    assert np.linalg.norm(tiled - whole) < 0.35 * np.linalg.norm(whole)


def test_tiles_of_a_flipped_group_are_those_of_the_mirrored_picture() -> None:
    """Mirrored as one: each tile mirrored in its own place would be no picture."""
    clean = {"taps": [{"name": "unet-in", "dtype": "float32"}], "latents": "mean"}
    groups = [group(name, flip=name == "f", techniques=[{"type": "no-noise"}], **clean) for name in "pf"]
    tiled = make_engine(make_spec(*groups, image_size=[64, 192], tiles={"size": [64, 128], "overlap": 32}))
    picture = np.stack([pixels(64, 192).transpose(2, 0, 1)])
    ids = [("a.tar", "a")]
    found = tiled.run(of_pictures(ids, picture)).maps["f", "unet-in"]
    mirrored = np.ascontiguousarray(picture[..., ::-1])
    expected = tiled.run(of_pictures(ids, mirrored)).maps["p", "unet-in"]
    assert np.allclose(found, expected, atol=1e-5)


def test_tiles_of_a_mirrored_group_have_the_noise_of_their_place() -> None:
    """Numbers of the upright place lay on mirrored tiles: one spot had two kinds of noise, and the blend less of it."""
    taps = [{"name": "unet-in", "dtype": "float32"}]
    flipped = group(taps=taps, timestep=990, flip=True)
    grey = of_pictures([("a.tar", "a")], np.full((1, 3, 128, 192), 127, np.uint8))
    size = {"image_size": [128, 192]}
    whole: Any = make_engine(make_spec(flipped, **size)).run(grey).maps["plain", "unet-in"]
    tiles = make_spec(flipped, **size, tiles={"size": [128, 128], "overlap": 64})
    tiled: Any = make_engine(tiles).run(grey).maps["plain", "unet-in"]
    assert np.linalg.norm(tiled - whole) < 0.05 * np.linalg.norm(whole)


@pytest.mark.usefixtures("switches")
def test_tiles_do_not_multiply_switches_and_texts() -> None:
    """Each tile switched weights for each group, and encoded every caption again."""
    taps = ["up-level1-upsampler-out"]
    groups = [
        group("a", prompt="{caption}", taps=taps),
        group("b", prompt="{caption}", techniques=lora("1"), taps=taps),
    ]
    spec = make_spec(*groups, image_size=[128, 192], tiles={"size": [128, 128], "overlap": 64})
    folder = sources.locate(spec.backbone)
    engine = Engine(families.load(folder, dtype=torch.float32, device="cpu"), spec, layouts(spec, folder))
    before = engine.calls.copy()
    picture = np.stack([pixels(128, 192).transpose(2, 0, 1)])
    engine.run(of_pictures([("a.tar", "a")], picture, caption=["a bird"]))
    made = engine.calls - before
    assert (made["switch"], made["text"], made["network"]) == (1, 2, 4)


def test_calls_of_the_network_are_foretold() -> None:
    """Averages, guidance and steps on the way multiply; groups that share a pass count once."""
    steps = [
        {"type": "denoise", "start": 60},
        {"type": "average", "seeds": 2},
        {"type": "guidance", "scale": 2.0},
    ]
    engine = make_engine(make_spec(group("a"), group("b", taps=TAPS[:1]), group("c", techniques=steps)))
    engine.run(make_batch(KEYS))
    assert engine.network_calls == 1 + 12 * 2 * 2 == engine.calls["network"]
