"""Losses are errors of noise, whatever a network predicts, and their differences have the right sign."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import embedded, families
from pipeline.backbone import Backbone
from pipeline.embedded_figures import denoising
from pipeline.embedded_figures.figure import Goal
from pipeline.embedded_figures.latents import drawn, encoded
from pipeline.embedded_figures.scenes import Scene
from tests import loras
from tests.backbones import tiny
from tests.evaluation_scenes import scene

SCENES = [scene(number, classes=[1 + number % 3]) for number in range(5)]


@pytest.fixture(params=["sd1", "sd2-v"])
def backbone(request: pytest.FixtureRequest) -> Backbone:
    return families.load(tiny(request.param), dtype=torch.float32, device="cpu")


def prompts(scenes: Sequence[Scene] = SCENES) -> list[str]:
    return [one.caption for one in scenes]


def target(backbone: Backbone, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
    """What a perfect network gives, by diffusers' own formulas."""
    scheduler: Any = backbone.schedule._scheduler
    if scheduler.config.prediction_type == "epsilon":
        return noise
    velocity: Tensor = scheduler.get_velocity(latents, noise, torch.tensor(timestep))
    return velocity


def test_a_network_that_knows_the_noise_has_no_loss(
    backbone: Backbone, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Guards against v that is compared with noise, and against noise that is not the one laid over the scene."""
    latents = encoded(backbone, SCENES)
    timestep = backbone.schedule.timestep(300)
    answers = iter([target(backbone, latents, drawn(SCENES, latents, draw), timestep) for draw in range(2)])
    monkeypatch.setattr(backbone, "predict", lambda inputs: next(answers))
    found = denoising.losses(backbone, SCENES, latents, prompts(), 300, 2)
    exact = backbone.schedule._scheduler.config.prediction_type == "epsilon"
    assert (found == 0).all() if exact else (found < 1e-10).all()


def test_an_error_of_one_is_a_loss_of_one(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    """In units of noise: v is `alpha` times as far off, and the noise made of it by alpha^2."""
    latents, t = encoded(backbone, SCENES[:2]), 500
    timestep = backbone.schedule.timestep(t)
    noise = drawn(SCENES[:2], latents, 0)
    monkeypatch.setattr(backbone, "predict", lambda inputs: target(backbone, latents, noise, timestep) + 1)
    config = backbone.schedule._scheduler
    kind, alpha = config.config.prediction_type, float(config.alphas_cumprod[timestep])
    expected = 1.0 if kind == "epsilon" else alpha
    np.testing.assert_allclose(
        denoising.losses(backbone, SCENES[:2], latents, prompts()[:2], t, 1), expected, rtol=1e-4
    )


def test_a_scenes_loss_does_not_depend_on_its_company(backbone: Backbone) -> None:
    """Noise belongs to a scene: that is what makes losses with two prompts a pair."""
    latents = encoded(backbone, SCENES)
    together = denoising.losses(backbone, SCENES, latents, prompts(), 100, 2)
    alone = denoising.losses(backbone, SCENES[3:4], latents[3:4], prompts()[3:4], 100, 2)
    np.testing.assert_allclose(alone, together[3:4], rtol=1e-4)
    assert len(set(together.round(6))) == len(SCENES)


def test_draws_are_averaged(backbone: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    latents = encoded(backbone, SCENES)
    several = denoising.losses(backbone, SCENES, latents, prompts(), 100, 3)
    singles = []
    for draw in range(3):
        monkeypatch.setattr(denoising, "drawn", lambda scenes, like, _, draw=draw: drawn(scenes, like, draw))
        singles.append(denoising.losses(backbone, SCENES, latents, prompts(), 100, 1))
    np.testing.assert_allclose(np.mean(singles, 0), several, rtol=1e-5)
    assert not np.allclose(singles[0], singles[1], rtol=1e-3)


def test_other_predictions_are_refused() -> None:
    one = torch.zeros(1, 4, 8, 8)
    schedule = families.load(tiny("sd1"), dtype=torch.float32, device="cpu").schedule
    with pytest.raises(ValueError, match="predicts 'sample'; known are epsilon and v_prediction"):
        denoising.as_noise(one, one, schedule, 1, "sample")


class Reader:
    """Stands for `losses`: a network that has 0.1 less loss on captions it likes, and keeps what it was asked."""

    def __init__(self, likes: Any) -> None:
        self.likes = likes
        self.asked: list[list[str]] = []

    def __call__(
        self,
        backbone: Any,
        scenes: Sequence[Scene],
        latents: Tensor,
        prompts: Sequence[str],
        t: int,
        draws: int,
    ) -> np.ndarray:
        assert len(scenes) == len(latents) == len(prompts)
        self.asked.append(list(prompts))
        rng = np.random.default_rng(t)
        return rng.random(len(scenes)) - [
            0.1 * self.likes(one, text) for one, text in zip(scenes, prompts, strict=True)
        ]


def test_the_right_caption_lowers_the_loss(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a difference with the wrong sign."""
    monkeypatch.setattr(denoising, "losses", Reader(lambda scene, text: text == scene.caption))
    found = denoising.captions(None, SCENES, torch.zeros(len(SCENES), 1), 4)  # type: ignore[arg-type]
    goals = [one for one in found if one.goal is not None]
    assert len(goals) == len(denoising.TIMES) + 1 and all(one.reached for one in goals)
    assert [one.value.mean for one in goals if one.unit == "MSE"] == pytest.approx([0.1] * 4)


def test_a_network_that_cannot_read_gains_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(denoising, "losses", Reader(lambda scene, text: False))
    found = denoising.captions(None, SCENES, torch.zeros(len(SCENES), 1), 4)  # type: ignore[arg-type]
    assert not any(one.reached for one in found if one.goal is not None)


def test_words_on_quality(monkeypatch: pytest.MonkeyPatch) -> None:
    """Only these words differ in a pair; plain and noisy scenes are left out, and no more are taken than asked for."""
    qualities: list[Any] = ["sharp", "plain", "blurry", "noisy", "sharp", "blurry", "sharp", "blurry"]
    scenes = [scene(number, quality=quality) for number, quality in enumerate(qualities)]
    reader = Reader(lambda scene, text: text == scene.caption)
    monkeypatch.setattr(denoising, "losses", reader)
    found = denoising.quality_words(None, scenes, torch.zeros(8, 1), 2, most=2)  # type: ignore[arg-type]
    goals = [one for one in found if one.goal is not None]
    assert [one.value.mean for one in found] == pytest.approx([-0.1] * len(found))
    assert [one.value.n for one in goals] == [2, 2] and all(one.reached for one in goals)
    assert "blurry scenes" in goals[0].what and "sharp scenes" in goals[1].what
    assert reader.asked[0] == [scenes[2].caption, scenes[5].caption]
    assert reader.asked[1] == [scenes[place].content + ", best quality, sharp" for place in (2, 5)]
    plain = [scene(0), scene(1), scene(2, quality="sharp")]
    assert denoising.quality_words(None, plain, torch.zeros(3, 1), 2, 9) == []  # type: ignore[arg-type]


def test_a_lora_changes_the_loss_while_it_is_in_force(tmp_path: Path) -> None:
    """Random changes change what it predicts; afterwards its weights are the bytes that they were."""
    backbone = families.load(Path(embedded.BACKBONE), dtype=torch.float32, device="cpu")
    network = backbone.network
    path = loras.locon(network, backbone.encoders["text_encoder"]).save(tmp_path / "moderate.safetensors")
    before = {name: value.clone() for name, value in network.state_dict().items()}
    latents = encoded(backbone, SCENES[:3])
    goal = Goal("at most", -3)
    found = denoising.lora_change(backbone, path, SCENES[:3], latents, 1, "target domain", goal)
    assert abs(found.value.mean) > 1e-3 and found.value.n == 3
    assert found.what == "denoising loss with LoRA moderate, target domain"
    assert all(torch.equal(value, before[name]) for name, value in network.state_dict().items())


def test_a_loras_change_is_in_percent_of_the_loss_without(monkeypatch: pytest.MonkeyPatch) -> None:
    """Guards against a change of the wrong sign or base: from 2 to 1.9 is -5%."""
    answers = [2.0] * len(denoising.TIMES) + [1.9] * len(denoising.TIMES)
    monkeypatch.setattr(denoising, "losses", lambda *_: answers.pop(0) + np.array([0, 0.1, -0.1]))
    monkeypatch.setattr(denoising, "lora_in_force", lambda *_: torch.no_grad())
    unused: Any = None
    path, goal = Path("moderate.safetensors"), Goal("at most", -3)
    found = denoising.lora_change(unused, path, SCENES[:3], torch.zeros(3), 1, "x", goal)
    assert found.value.mean == pytest.approx(-5) and found.reached
