"""Stock pipelines of a folder: DDIM, no checker, noise by place."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import DDIMScheduler

from pipeline.embedded_figures import pipelines
from tests.backbones import tiny
from tests.controls import write_controlnet


@pytest.fixture(scope="module")
def plain() -> Any:
    return pipelines.text_to_image(tiny("sd2-v"))


def test_keeps_what_the_network_predicts(plain: Any) -> None:
    """Guards against a scheduler of defaults: a network of v would be taken for one of noise."""
    config = plain.scheduler.config
    assert isinstance(plain.scheduler, DDIMScheduler)
    assert config.prediction_type == "v_prediction" and config.beta_schedule == "scaled_linear"
    assert config.clip_sample is False and plain.safety_checker is None


def test_clips_nothing_where_the_checkpoints_scheduler_has_no_such_option() -> None:
    """PNDM has none, and DDIM's default would cut latents to [-1, 1]."""
    assert pipelines.text_to_image(tiny("sd1")).scheduler.config.clip_sample is False


def test_noise_depends_on_the_place_only(plain: Any) -> None:
    two = pipelines.generate(plain, ["a cat", "a dog"], steps=2)
    one = pipelines.generate(plain, ["a cat"], steps=2)
    assert two.shape == (2, 64, 64, 3) and two.dtype == np.uint8
    assert np.abs(two[:1].astype(int) - one).max() <= 1
    same = pipelines.generate(plain, ["a cat", "a cat"], steps=2)
    assert np.abs(same[0].astype(int) - same[1]).mean() > 1


def test_control_makes_a_difference(plain: Any, tmp_path: Path) -> None:
    """And shares the plain pipeline's networks: two copies of them would be in memory."""
    controlled = pipelines.controlled(plain, Path(write_controlnet(tmp_path / "control", tiny("sd2-v"))))
    assert controlled.unet is plain.unet and controlled.vae is plain.vae
    controls = torch.zeros(2, 3, 64, 64)
    controls[1] = 1
    black, white = (
        pipelines.generate(controlled, ["a cat"], steps=2, controls=controls[place : place + 1])
        for place in (0, 1)
    )
    assert (black != white).any()
