from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import ControlNetModel, StableDiffusionPipeline

from pipeline import families, techniques
from pipeline.training.latents import encode
from pipeline.training.loop import Settings
from pipeline.training.recipe import STAGES, Recipe, train
from schemas.techniques import ControlNet

_SHORT = Settings(steps=2, batch_size=2, optimizer="muon", learning_rate=1e-3, warmup=1)
RECIPE = Recipe(size=64, scenes=24, encoded=12, stages=dict.fromkeys(STAGES, _SHORT))


@pytest.fixture
def work(scene_shards: Path, tmp_path: Path) -> Path:
    (tmp_path / "scenes").symlink_to(scene_shards)
    return tmp_path


def test_from_scenes_to_a_backbone(work: Path) -> None:
    """Every stage finds what the one before left; the result is what users load, and its parts fit one another."""
    for name in STAGES:
        assert not train(name, work, RECIPE, on_step=lambda step, _: step == 1)
        assert train(name, work, RECIPE)
        assert (work / name / "log.jsonl").read_text().count("\n") == 2
    pipeline = StableDiffusionPipeline.from_pretrained(work / "backbone", torch_dtype=torch.float32)
    controlnet = ControlNetModel.from_pretrained(work / "controlnet-canny", torch_dtype=torch.float32)
    assert all(value.isfinite().all() for value in controlnet.state_dict().values())
    assert pipeline.scheduler.config.prediction_type == "v_prediction"
    folder = work / "backbone"
    spec = ControlNet(type="controlnet", source=str(work / "controlnet-canny"))
    techniques.check([spec], families.family(folder), folder)
    results = [*folder.rglob("*.safetensors"), *(work / "controlnet-canny").glob("*.safetensors")]
    assert len(results) == 4
    assert sum(path.stat().st_size for path in results) < 29 * 2**20


def test_stages_have_an_order(work: Path) -> None:
    with pytest.raises(ValueError, match="train the stage `vae` to its end first"):
        train("unet", work, RECIPE)
    with pytest.raises(ValueError, match="train the stage `unet` to its end first"):
        train("controlnet", work, RECIPE)


def test_too_few_scenes(work: Path) -> None:
    many = Recipe(size=64, scenes=99, encoded=12, stages=RECIPE.stages)
    with pytest.raises(
        ValueError, match=r"holds 24 scenes, the recipe asks for 99; run `gatehouse embedded scenes`"
    ):
        train("vae", work, many)


def test_latents_are_of_the_vae_that_was_exported(work: Path) -> None:
    train("vae", work, RECIPE)
    train("unet", work, RECIPE)
    from pipeline.training.recipe import _scenes, _trained_vae

    vae, images = _trained_vae(work), _scenes(work, "seen", RECIPE, 12)
    [cache] = work.glob("latents-*.safetensors")
    cached = encode(vae, images, cache)
    assert torch.equal(cached.mean, encode(vae, images, work / "again.safetensors").mean)
