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
from pipeline.training.recipe import STAGES, Recipe, train

HELD_OUT: Final = 1200
"""Scenes that figures are taken on."""


def make_scenes(
    out: str,
    *,
    stamps: str,
    seen: int = Recipe().scenes,
    held_out: int = HELD_OUT,
    size: int = Recipe().size,
    per_shard: int = 2000,
) -> int:
    """Write scenes of seen and of held-out cut-outs to shards in the folder `out`.

    Raises:
        FileNotFoundError: there are no stamps.
    """
    console = Console()
    counts: Mapping[Split, int] = {"seen": seen, "held-out": held_out}
    for split, count in counts.items():
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


def train_stage(stage: str, work: str, *, minutes: float | None = None, recipe: Recipe | None = None) -> int:
    """Train a stage, or go on with it, and return the exit code.

    Args:
        stage: one of `STAGES`; those before it must be finished.
        work: the folder of the recipe.
        minutes: stop then; the same command goes on.
        recipe: default, the one that the embedded backbone was made by.

    Raises:
        ValueError: the stage is unknown, or what it builds on is not there.
    """
    recipe = recipe or Recipe()
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
