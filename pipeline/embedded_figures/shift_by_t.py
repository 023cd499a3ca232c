"""Content shift (Eq. 1) of each legacy tap as noise grows, relative to the features of clean latents at t = 0."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch
from numpy.typing import NDArray

from pipeline.embedded_figures.features import clean, extract, legacy_taps
from pipeline.embedded_figures.figure import Figure, Goal
from pipeline.embedded_figures.scenes import Scene
from pipeline.embedded_figures.statistics import counted, falls, interval
from pipeline.shift import relative_shift

TIMES = (25, 50, 100, 200, 400)
Shifts = dict[str, dict[int, NDArray[np.float64]]]
"""By tap and t, of each scene, [scenes]."""


def measured(backbone: Path, scenes: Sequence[Scene]) -> Shifts:
    """Relative shift of every scene with the plain prompt, the same noise's direction at every t."""
    groups = [clean("clean"), {"name": "noisy", "t": list(TIMES)}]
    features = {
        name: torch.from_numpy(values)
        for name, values in extract(backbone, scenes, groups, "float32").items()
    }
    return {
        tap: {
            t: relative_shift(features[f"noisy-t{t}/{tap}"], features[f"clean/{tap}"]).double().numpy()
            for t in TIMES
        }
        for tap in legacy_taps(backbone)
    }


def figures(shifts: Mapping[str, Mapping[int, NDArray[np.float64]]]) -> list[Figure]:
    """The mean of each tap and t, and at how many taps it rises from every t to the next."""
    found = [
        Figure(f"relative shift (Eq. 1), {tap}, t = {t}", interval(values), "of the clean feature")
        for tap, by_time in shifts.items()
        for t, values in by_time.items()
    ]
    rising = sum(
        falls([-values.mean() for values in by_time.values()]) == len(by_time) - 1
        for by_time in shifts.values()
    )
    scenes = len(next(iter(next(iter(shifts.values())).values())))
    what = f"taps at which the mean shift rises with every step of t, of {len(shifts)}"
    return [Figure(what, counted(rising, scenes), "taps", Goal("at least", len(shifts) - 1)), *found]
