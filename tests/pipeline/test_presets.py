"""Presets are specs that parse as they are printed, with figures that are right."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace
from typing import Any, cast

import numpy as np
import pytest
import torch
from diffusers import FluxTransformer2DModel

from jobs import endings, extract
from pipeline import FeatureStore, checkpoint, families, presets
from pipeline.layouts import layouts
from pipeline.noising import load_schedule
from pipeline.presets import Preset
from pipeline.recipes import Recipe
from pipeline.techniques.starts import start_of
from pipeline.tiles import alignment, places
from schemas.receipts import ArrayLayout
from schemas.spec import ExtractSpec
from schemas.specfile import load
from tests import backbones, full_size, loras
from tests.backbones import GOLDEN
from tests.faults.harness import write_shards

_BACKBONES = {
    "SD 1.5": ("StableDiffusionPipeline", full_size.SD_15),
    "SD 2.1": ("StableDiffusionPipeline", full_size.SD_21),
    "SD 2.1, tuned": ("StableDiffusionPipeline", full_size.SD_21),
    "FLUX.1-dev": ("FluxPipeline", full_size.FLUX),
}


@pytest.fixture(scope="module")
def folders(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Full-size configs by a preset's backbone."""
    root = tmp_path_factory.mktemp("configs")
    return {
        name: full_size.write(root / name, pipeline, parts) for name, (pipeline, parts) in _BACKBONES.items()
    }


@pytest.fixture(params=presets.names())
def preset(request: pytest.FixtureRequest) -> Preset:
    return presets.read(request.param)


def test_there_are_presets_for_every_recipe() -> None:
    assert set(presets.names()) == {
        "cleandift",
        "ddpm-segmentation",
        "dift",
        "ditf-flux",
        "gate-cityscapes",
        "gate-correspondence",
        "gate-label-scarce",
        "gate-segmentation",
        "geoaware-sc",
    }


def test_a_preset_is_a_spec_as_it_stands(preset: Preset, tmp_path: Path) -> None:
    """Written to a file, it is refused for nothing but the paths that are to be filled in."""
    path = tmp_path / "spec.yaml"
    path.write_text(preset.text)
    spec: ExtractSpec = load(str(path))
    assert spec == preset.spec
    assert all(line.count("fill in") == 1 for line in preset.text.splitlines() if "./" in line)
    assert preset.what and "arXiv" in preset.source and "/" in preset.source
    assert not spec.backbone.source.startswith("./") or spec.backbone.revision is None


def test_hub_ids_are_pinned(preset: Preset) -> None:
    """A job must mean the same tomorrow."""
    spec = preset.spec
    named: list[Any] = [spec.backbone]
    named += [one for group in spec.groups for one in group.techniques if one.type == "controlnet"]
    for one in named:
        assert one.source.startswith("./") or len(one.revision) == 40


def test_figures_are_those_of_the_full_size_network(preset: Preset, folders: dict[str, Path]) -> None:
    """By the plan and the engine's own count, from the published configs; every tap exists there."""
    folder, spec = folders[preset.backbone], preset.spec
    arrays = layouts(spec, folder)
    assert all(array.dtype == "float16" for array in arrays)
    assert preset.bytes_per_image == sum(array.row_bytes for array in arrays)
    assert preset.passes == _passes(spec, folder, arrays)


def _passes(spec: ExtractSpec, folder: Path, arrays: list[ArrayLayout]) -> int:
    schedule = load_schedule(folder, checkpoint.config(folder, "scheduler"))
    backbone = cast(Any, SimpleNamespace(schedule=schedule))
    recipes = [Recipe(group, start_of(group), 0, 1, ()) for group in spec.expanded_groups]
    calls = sum(recipe.network_calls(backbone) for recipe in recipes)
    if spec.tiles is None:
        return calls
    image, tile = (_size(size) for size in (spec.image_size, spec.tiles.size))
    step = alignment(image, [_size(array.shape[1:]) for array in arrays])
    return calls * len(places(image, tile, spec.tiles.overlap, step))


def _size(sides: list[int]) -> tuple[int, int]:
    height, width = sides
    return height, width


@pytest.fixture(scope="module")
def tiny(tmp_path_factory: pytest.TempPathFactory) -> dict[str, dict[str, str]]:
    """Tiny weights for what a preset names: SD's are laid out as the full-size networks, FLUX has all its blocks."""
    root = tmp_path_factory.mktemp("tiny")
    sd = families.load(GOLDEN / "sd15-tiny", dtype=torch.float32, device="cpu")
    lora = loras.locon(sd.network, sd.encoders["text_encoder"]).save(root / "lora.safetensors")
    pipe = backbones.FAMILIES["flux"]()
    config = dict(pipe.transformer.config) | {"num_layers": 19, "num_single_layers": 38}
    pipe.register_modules(transformer=FluxTransformer2DModel.from_config(config))
    pipe.save_pretrained(root / "flux")
    files = {"controlnet": str(GOLDEN / "controlnet-canny-tiny"), "lora": str(lora)}
    sds = {name: files | {"backbone": str(GOLDEN / "sd15-tiny")} for name in _BACKBONES if "SD" in name}
    return sds | {"FLUX.1-dev": {"backbone": str(root / "flux")}}


def test_a_preset_runs(preset: Preset, tiny: dict[str, dict[str, str]], tmp_path: Path) -> None:
    """From shards to a store with all its features, with paths filled in and pictures of 64 px."""
    found = tiny[preset.backbone]
    spec: dict[str, Any] = preset.spec.model_dump()
    spec["store"], spec["input"]["shards"] = str(tmp_path / "store"), write_shards(tmp_path / "in", 1, 3)
    spec["image_size"] = [64, 64]
    if spec["tiles"]:
        spec["image_size"], spec["tiles"] = [64, 128], {"size": [64, 64], "overlap": 32}
    spec["backbone"] |= {"source": found["backbone"], "revision": None, "dtype": "float32", "batch_size": 2}
    for technique in (one for group in spec["groups"] for one in group["techniques"] if "source" in one):
        technique["source"] = found[technique["type"]]
        technique |= {"revision": None} if technique["type"] == "controlnet" else {}
    spec["cluster"] = {"device": "cpu"}
    assert extract.run(ExtractSpec.model_validate(spec), serial=True) == endings.DONE
    store = FeatureStore(spec["store"])
    assert store.index["status"].to_pylist() == ["ok"] * 3
    arrays = {f"{array.group}/{array.tap}" for array in store.manifest.arrays}
    assert {tap.partition("/")[0] for tap in arrays} == {group.name for group in preset.spec.expanded_groups}
    values = store.read(store.rows(), sorted(arrays))
    assert all(np.isfinite(value).all() and np.ptp(value) > 0 for value in values.values())


def test_known_figures() -> None:
    """The paper's features: 3,520 channels in 11.1 MB, and 154 channels of attention at 64 x 64."""
    legacy = 2 * (1280 * 16**2 + 1280 * 32**2 + 640 * 64**2 + 320 * 64**2)
    assert legacy == 11_141_120
    paper = presets.read("gate-correspondence")
    assert paper.bytes_per_image == 6 * legacy + 2 * 154 * 64**2
    assert paper.passes == 6 + 12


def test_an_unknown_name() -> None:
    with pytest.raises(ValueError, match=r"no preset 'dfit'; nearest: dift.*; there are cleandift, "):
        presets.read("dfit")
