"""What an experiment's features cost, from configs alone: before weights are fetched and images are read."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pipeline import checkpoint, families
from pipeline.layouts import layouts
from pipeline.noising import load_schedule
from pipeline.recipes import tiling_of
from pipeline.techniques.starts import start_of
from pipeline.tiles import places
from schemas.spec import ExtractSpec


@dataclass(frozen=True)
class Cost:
    """Of one image."""

    row_bytes: int
    """Of its features, before compression."""
    passes: int
    """Of the network."""


def cost(spec: ExtractSpec, folder: Path) -> Cost:
    """The cost of an extract job.

    Args:
        spec: whose groups have no technique that multiplies passes, as those of experiments.
        folder: with the backbone's configs.

    Raises:
        ValueError: a tap that the backbone does not have, or an image size that it cannot take.
    """
    arrays = layouts(spec, folder)
    schedule = load_schedule(folder, checkpoint.config(folder, "scheduler"))
    passes = sum(1 + start_of(group).calls(schedule) for group in spec.expanded_groups)
    if spec.tiles is not None:
        latents = families.family(folder).latent_shape(folder, spec.image_size)
        passes *= len(places(*tiling_of(spec, arrays, latents)))
    return Cost(sum(array.row_bytes for array in arrays), passes)
