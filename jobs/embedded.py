"""`gatehouse embedded`: makes the backbone that ships with the package, from pictures to files, and measures it.

scenes    cut-outs -> shards of scenes
train     scenes -> VAE -> UNet and text encoder -> ControlNet, a stage at a time
evaluate  what the result is worth, on scenes of cut-outs that it never saw
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Final

from rich.console import Console

from jobs.endings import DONE, FAILED, STOPPED
from jobs.training import TrainingProgress, stop_after_step
from pipeline.scenes.shards import Split, write_scenes
from pipeline.training.curves import draw_curve
from pipeline.training.recipe import RECIPES, STAGES, Recipe, default_recipe, train

HELD_OUT: Final = 1200
"""Scenes that figures are taken on."""
DRAWN: Final = 1200
"""Scenes of the domain that LoRAs are trained for: some for that, others for their figures."""


def make_scenes(
    out: str,
    *,
    stamps: str,
    seen: int = RECIPES["gpu"].scenes,
    held_out: int = HELD_OUT,
    drawn: int = DRAWN,
    size: int = RECIPES["gpu"].size,
    per_shard: int = 2000,
) -> int:
    """Write scenes of seen cut-outs, of held-out ones and of drawings to shards in the folder `out`.

    Raises:
        FileNotFoundError: there are no stamps.
    """
    console = Console()
    counts: Mapping[Split, int] = {"seen": seen, "held-out": held_out, "drawn": drawn}
    for split, count in counts.items():
        if not count:
            continue
        shards = write_scenes(
            Path(out),
            split,
            count,
            stamps=Path(stamps),
            size=size,
            per_shard=per_shard,
            processes=os.cpu_count() or 1,
        )
        for path in shards:
            console.print(str(path), highlight=False, soft_wrap=True)
    return DONE


def recipe_of(name: str | None) -> Recipe:
    """A recipe by its name; None: the one for this machine.

    Raises:
        ValueError: there is none of that name.
    """
    name = default_recipe() if name is None else name
    if name not in RECIPES:
        raise ValueError(f"recipe {name!r} is unknown; there are {', '.join(RECIPES)}")
    return RECIPES[name]


def train_stage(stage: str, work: str, *, recipe: Recipe, minutes: float | None = None) -> int:
    """Train a stage, or go on with it, and return the exit code.

    Args:
        stage: one of `STAGES`; those before it must be finished.
        work: the folder of the recipe.
        recipe: of all stages in that folder.
        minutes: stop then; the same command goes on.

    Raises:
        ValueError: the stage is unknown, or what it builds on is not there.
    """
    if stage not in STAGES:
        raise ValueError(f"stage {stage!r} is unknown; the stages are, in this order: {', '.join(STAGES)}")
    console = Console()
    progress = TrainingProgress(console, stage, recipe.stages[stage].steps)
    folder = Path(work, stage)
    try:
        with stop_after_step(console) as asked:

            def on_step(step: int, logged: dict[str, float]) -> bool:
                progress(step, logged)
                return asked.is_set()

            done = train(
                stage,
                Path(work),
                recipe,
                stop_after_s=None if minutes is None else 60 * minutes,
                on_step=on_step,
            )
    except FloatingPointError as error:
        console.print(str(error), soft_wrap=True)
        return FAILED
    except KeyboardInterrupt:
        console.print(f"{stage}: stopped; the same command goes on from its last checkpoint")
        return STOPPED
    console.print(f"{stage}: {'done' if done else 'stopped; the same command goes on from here'}")
    console.print(f"checkpoint, log, pictures: {folder}; {draw_curve(folder)}", soft_wrap=True)
    return DONE if done else STOPPED
