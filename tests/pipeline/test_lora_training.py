"""What the network is trained on: its own noise schedule and target, from cached encodings, drawn by a generator."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pipeline import families, sources
from pipeline.backbone import Backbone
from pipeline.lora_images import Example
from pipeline.lora_samples import Sampler, picture_name
from pipeline.lora_training import LoraStage, check_trainable, encode, encode_text, settings
from pipeline.lora_weights import add_factors, without_factors
from pipeline.training.loop import Trainer
from schemas.lora import LoraSpec, Samples
from schemas.spec import Backbone as BackboneSpec
from tests import backbones
from tests.tars import pixels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"


def examples(count: int = 3, size: int = 64) -> list[Example]:
    return [
        Example("0.tar", str(n), "", f"picture {n % 2}", pixels(size, size, n).transpose(2, 0, 1))
        for n in range(count)
    ]


def backbone_at(folder: Path) -> Backbone:
    return families.load(folder, dtype=torch.float32, device="cpu")


def stage_of(backbone: Backbone, *, flip: bool = False, batch_size: int = 4, size: int = 64) -> LoraStage:
    encoded = encode(backbone, examples(size=size), flip=flip, batch_size=2)
    factors = add_factors(backbone.network, layers="locon", rank=4, alpha=2.0, seed=0)
    return LoraStage(backbone, factors, encoded, batch_size)


def generator(seed: int = 0) -> torch.Generator:
    return torch.Generator().manual_seed(seed)


def spec_of(**changes: Any) -> LoraSpec:
    document = {
        "version": 1,
        "lora": "out",
        "input": {"shards": "*.tar"},
        "image_size": [64, 64],
        "backbone": {"batch_size": 4},
    }
    return LoraSpec.model_validate(document | changes)


def by_hand(backbone: Backbone, stage: LoraStage, seed: int) -> float:
    """The loss from the scheduler's cumulative alphas, drawn as the stage draws."""
    random = generator(seed)
    latents, text = stage._encoded.draw(4, random)
    noise = torch.randn(latents.shape, generator=random)
    times = torch.randint(1000, (4,), generator=random)
    schedule: Any = backbone.schedule
    share = schedule._scheduler.alphas_cumprod[times].view(-1, 1, 1, 1)
    noisy = share.sqrt() * latents + (1 - share).sqrt() * noise
    v = share.sqrt() * noise - (1 - share).sqrt() * latents
    target = v if schedule._scheduler.config.prediction_type == "v_prediction" else noise
    with torch.no_grad():
        inputs = backbone.inputs(backbone.network, noisy, times, text)
        output = backbone.network(**inputs, return_dict=False)[0]
    return float(((backbone.estimate(output, latents) - target) ** 2).mean())


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl", "playground", "if"])
def test_the_loss_is_that_of_the_backbones_own_training(name: str) -> None:
    """Noise, or v where the scheduler says so; SDXL's sizes and pooled text; of DeepFloyd IF not the variance."""
    backbone = backbone_at(backbones.tiny(name))
    stage = stage_of(backbone)
    loss, _ = stage.loss(stage.draw(generator(3)))
    assert loss.item() == pytest.approx(by_hand(backbone, stage, 3), rel=1e-4)
    loss.backward()
    assert all(factor.grad is not None for factor in stage.parameters().values())


def test_v_is_another_target_than_noise(tmp_path: Path) -> None:
    folder = tmp_path / "v"
    shutil.copytree(GOLDEN / "sd15-tiny", folder)
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "v_prediction"}))
    stages = [stage_of(backbone_at(one)) for one in (GOLDEN / "sd15-tiny", folder)]
    noise, v = (stage.loss(stage.draw(generator()))[0] for stage in stages)
    assert abs(noise.item() - v.item()) > 0.01


def test_a_step_is_its_generators() -> None:
    stage = stage_of(backbone_at(GOLDEN / "sd15-tiny"))
    same, again, other = (stage.loss(stage.draw(generator(seed)))[0] for seed in (1, 1, 2))
    assert torch.equal(same, again)
    assert not torch.equal(same, other)


def test_what_is_encoded() -> None:
    """The posterior is kept and sampled anew; each image has its prompt; mirrored images have their own latents."""
    backbone = backbone_at(GOLDEN / "sd15-tiny")
    encoded = encode(backbone, examples(), flip=True, batch_size=2)
    assert encoded.mean.shape == encoded.deviation.shape == (2, 3, 4, 8, 8)
    assert len(encoded.text["prompt_embeds"]) == 2 and encoded.prompt.tolist() == [0, 1, 0]
    assert torch.equal(
        encoded.text["prompt_embeds"][1:], backbone.encode_text(["picture 1"])["prompt_embeds"]
    )
    images = torch.from_numpy(np.stack([one.pixels for one in examples()]))
    for view, flipped in enumerate([images, images.flip(-1)]):
        mean, deviation = backbone.encode_images(flipped)
        for shares, expected in ((0, mean), (1, mean + deviation)):
            found = encoded.mean[view] + shares * encoded.deviation[view]
            torch.testing.assert_close(found, backbone.scale_latents(expected), atol=1e-5, rtol=1e-5)
    first, second = (encoded.draw(64, generator(seed))[0] for seed in (0, 1))
    assert first.shape == (64, 4, 8, 8) and not torch.equal(first, second)


def test_overfitting_lowers_the_loss(tmp_path: Path) -> None:
    """On the drawn images, with noise that training did not see; the embedded backbone."""
    folder = sources.locate(BackboneSpec(source="embedded"))
    backbone = backbone_at(folder)
    stage = stage_of(backbone, batch_size=2)

    @torch.no_grad()
    def mean_loss() -> float:
        return sum(stage.loss(stage.draw(generator(1000 + seed)))[0].item() for seed in range(8)) / 8

    before = mean_loss()
    spec = spec_of(steps=20, learning_rate=3e-3, checkpoint_every=20, backbone={"batch_size": 2})
    assert Trainer(stage, settings(spec), tmp_path).run()
    after = mean_loss()
    assert after < 0.9 * before  # a third less, with the weights of today
    with without_factors(backbone.network):
        assert mean_loss() == pytest.approx(before, rel=1e-6)


def test_gradient_checkpointing_changes_no_value() -> None:
    plain = stage_of(backbone_at(GOLDEN / "sd15-tiny"))
    backbone = backbone_at(GOLDEN / "sd15-tiny")
    other = stage_of(backbone)
    backbone.network.enable_gradient_checkpointing()
    for stage in (plain, other):
        stage.loss(stage.draw(generator()))[0].backward()
    for name, factor in plain.parameters().items():
        torch.testing.assert_close(factor.grad, other.parameters()[name].grad)


@pytest.mark.parametrize("name", ["sd1", "sd2-v", "sdxl", "if"])
def test_sample_pictures(name: str, tmp_path: Path) -> None:
    """Without the LoRA they stay as they are, with it they change; a step's picture is written once."""
    backbone = backbone_at(backbones.tiny(name))
    text = encode_text(backbone, ["a duck", "a tree", ""])
    stage = stage_of(backbone)
    backbone.drop_text_encoders()
    backbone.vae = None
    sampler = Sampler(backbone, ["a duck", "a tree"], text, [64, 64], Samples(steps=2), seed=0)
    before = sampler.generate()
    assert [one.shape for one in before] == [(64, 64, 3)] * 2 and before[0].dtype == np.uint8
    stage = LoraStage(backbone, stage.parameters(), stage._encoded, 4, sampler)
    with torch.no_grad():
        for factor in stage.parameters().values():
            factor.add_(0.3)
    stage.show(tmp_path, 5)
    path = tmp_path / picture_name(5)
    written = path.stat().st_mtime_ns
    stage.show(tmp_path, 5)
    assert path.stat().st_mtime_ns == written
    assert not np.array_equal(sampler.generate(), before)
    with without_factors(backbone.network):
        assert np.array_equal(sampler.generate(), before)


@pytest.mark.parametrize("name", ["pixart-alpha", "sd3", "flux", "hunyuan"])
def test_transformers_are_refused(name: str) -> None:
    with pytest.raises(
        ValueError,
        match=r"is a \w+Pipeline, whose network is a transformer; LoRA is trained for UNets only: Stable",
    ):
        check_trainable(backbones.tiny(name), [64, 64])


def test_other_predictions_and_sizes_are_refused(tmp_path: Path) -> None:
    folder = tmp_path / "sample"
    shutil.copytree(GOLDEN / "sd15-tiny", folder, ignore=shutil.ignore_patterns("*.safetensors"))
    check_trainable(folder, [64, 64])
    with pytest.raises(ValueError, match=r"image_size \[60, 64\]: both sides must be multiples of 8"):
        check_trainable(folder, [60, 64])
    path = folder / "scheduler" / "scheduler_config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | {"prediction_type": "sample"}))
    with pytest.raises(
        ValueError, match=r"prediction_type 'sample'; LoRA is trained for 'epsilon' and 'v_pred"
    ):
        check_trainable(folder, [64, 64])


def test_settings_follow_the_spec() -> None:
    found = settings(spec_of(steps=200, learning_rate=2e-4, seed=7))
    assert (found.steps, found.batch_size, found.seed, found.ema) == (200, 4, 7, None)
    assert found.rate(0) == pytest.approx(2e-5) and found.rate(100) == 2e-4
    assert 0 < found.rate(199) < 2e-5
    assert settings(spec_of(steps=2)).rate(0) > 0
