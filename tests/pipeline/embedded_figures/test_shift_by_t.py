"""Shift of every legacy tap, beside the clean features of the same scene."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pipeline.embedded_figures import shift_by_t
from pipeline.embedded_figures.features import clean, extract, legacy_taps
from pipeline.shift import relative_shift
from tests.backbones import tiny
from tests.evaluation_scenes import scene

SCENES = [scene(number) for number in range(2)]


def test_measured_on_any_backbone() -> None:
    """Each value is that of its own tap, t and scene."""
    folder = tiny("sd2-v")
    found = shift_by_t.measured(folder, SCENES)
    assert list(found) == legacy_taps(folder)
    groups = [clean("clean"), {"name": "noisy", "t": 100}]
    features = extract(folder, SCENES[1:], groups, "float32")
    for tap, by_time in found.items():
        assert list(by_time) == list(shift_by_t.TIMES)
        assert all(values.shape == (2,) and (values > 0).all() for values in by_time.values())
        noisy, reference = (torch.from_numpy(features[f"{name}/{tap}"]) for name in ("noisy", "clean"))
        assert by_time[100][1] == pytest.approx(float(relative_shift(noisy, reference)[0]), rel=1e-3)


def test_the_reference_has_no_noise() -> None:
    """Its seed, which noise follows, changes only the posterior sample: with the mean it changes nothing."""
    folder = tiny("sd1")
    groups = [{**clean(f"seed{seed}"), "seed": seed, "latents": "mean"} for seed in (0, 1)]
    features = extract(folder, SCENES, groups, "float32")
    for tap in legacy_taps(folder):
        np.testing.assert_array_equal(features[f"seed0/{tap}"], features[f"seed1/{tap}"])


@pytest.mark.parametrize(("at_the_end", "reached"), [(5.0, True), (0.0, False)])
def test_goal(at_the_end: float, reached: bool) -> None:
    """Three of four taps must rise at every step: `still` never does, `c` depends."""
    rising = [1.0, 2.0, 3.0, 4.0]
    values = {"a": [*rising, 5.0], "b": [*rising, 5.0], "c": [*rising, at_the_end], "still": [1.0] * 5}
    shifts = {
        tap: {t: np.array([one, one + 1]) for t, one in zip(shift_by_t.TIMES, means, strict=True)}
        for tap, means in values.items()
    }
    goal, *rest = shift_by_t.figures(shifts)
    assert goal.value.mean == (3 if reached else 2) and goal.reached is reached
    assert len(rest) == 20 and rest[0].value.mean == 1.5 and rest[0].value.n == 2
