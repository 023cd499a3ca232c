from __future__ import annotations

from pathlib import Path

import pytest

from jobs.embedded import make_scenes, recipe_of, train_stage
from jobs.endings import DONE, STOPPED
from pipeline.training.loop import Settings
from pipeline.training.recipe import RECIPES, STAGES, Recipe, default_recipe
from tests.stamps import make_stamps

RECIPE = Recipe(
    size=64,
    scenes=8,
    encoded=8,
    stages=dict.fromkeys(STAGES, Settings(steps=2, batch_size=2, learning_rate=1e-3, warmup=1)),
)


def test_scenes_then_a_stage(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    stamps = make_stamps(tmp_path / "stamps")
    work = tmp_path / "work"
    assert make_scenes(str(work / "scenes"), stamps=str(stamps), seen=8, held_out=8, drawn=8, size=64) == DONE
    names = {path.name for path in (work / "scenes").iterdir()}
    assert names == {"seen-000000.tar", "held-out-000000.tar", "drawn-000000.tar"}
    assert train_stage("vae", str(work), minutes=0, recipe=RECIPE) == STOPPED
    assert "vae: stopped; the same command goes on from here" in capsys.readouterr().out
    assert train_stage("vae", str(work), recipe=RECIPE) == DONE
    told = capsys.readouterr().out
    assert "going on from step 1" in told
    assert "vae: 2/2 steps" in told
    assert (work / "vae" / "curve.png").stat().st_size > 5000


def test_an_unknown_stage(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"stage 'vea' is unknown; .* in this order: vae, unet, controlnet"):
        train_stage("vea", str(tmp_path), recipe=RECIPE)


def test_recipes() -> None:
    assert recipe_of("cpu") is RECIPES["cpu"]
    assert recipe_of(None) is RECIPES[default_recipe()]
    assert all(tuple(recipe.stages) == STAGES for recipe in RECIPES.values())
    with pytest.raises(ValueError, match=r"recipe 'tpu' is unknown; there are gpu, cpu"):
        recipe_of("tpu")
