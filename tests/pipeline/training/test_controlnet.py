from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import StableDiffusionPipeline

from pipeline import embedded
from pipeline.training.controlnet import ControlNetStage, as_control, edges
from pipeline.training.images import Images
from pipeline.training.latents import Latents
from pipeline.training.loop import Settings, Trainer, step_generator


@pytest.fixture(scope="module")
def stage(images: Images) -> ControlNetStage:
    pipeline = StableDiffusionPipeline.from_pretrained(embedded.BACKBONE, torch_dtype=torch.float32)
    channels = pipeline.unet.config.in_channels
    mean = torch.randn(24, channels, 8, 8, generator=torch.Generator().manual_seed(0)).half()
    shown = Images(images.pixels[:2], images.captions[:2])
    return ControlNetStage(
        Latents(mean, torch.full_like(mean, 0.1)), images, shown, pipeline, batch_size=2, seed=0
    )


def test_edges_are_where_the_picture_changes() -> None:
    picture = torch.zeros(1, 3, 32, 32, dtype=torch.uint8)
    picture[..., 16:] = 255
    [found] = edges(picture)
    assert found.dtype == torch.uint8
    assert set(found.unique().tolist()) == {0, 255}
    assert found[:, 14:18].any(1).all()
    assert not found[:, :13].any()
    assert as_control(found[None]).shape == (1, 3, 32, 32)
    assert as_control(found[None]).max() == 1


def test_it_begins_by_adding_nothing(stage: ControlNetStage) -> None:
    """The convolutions behind the residuals begin at zero, so the first estimate is the UNet's own."""
    noisy = torch.randn(2, stage._unet.config.in_channels, 8, 8)
    times = torch.tensor([10, 500])
    text = stage._text(stage._tokens[:2])
    with torch.no_grad():
        plain = stage._unet(noisy, times, text, return_dict=False)[0]
        controlled = stage._predict(noisy, times, text, as_control(stage._edges[:2]))
    assert torch.equal(plain, controlled)


def test_only_the_controlnet_is_trained(stage: ControlNetStage, tmp_path: Path) -> None:
    before = {name: value.clone() for name, value in stage._unet.state_dict().items()}
    trained = {name: value.detach().clone() for name, value in stage.parameters().items()}
    settings = Settings(
        steps=2, batch_size=2, optimizer="muon", learning_rate=1e-3, warmup=0, checkpoint_every=2
    )
    Trainer(stage, settings, tmp_path).run()
    assert all(torch.equal(value, before[name]) for name, value in stage._unet.state_dict().items())
    moved = [name for name, value in stage.parameters().items() if not torch.equal(value, trained[name])]
    assert "controlnet_down_blocks.0.weight" in moved
    assert (tmp_path / "samples-000002.png").exists()


def test_the_edges_are_those_of_the_drawn_images(stage: ControlNetStage, images: Images) -> None:
    drawn = stage.draw(step_generator(0, 0))
    chosen = torch.randint(len(images), (len(drawn["edges"]),), generator=step_generator(0, 0))
    assert torch.equal(drawn["edges"], edges(images.pixels[chosen]))
    assert stage.loss(drawn)[0].isfinite()
