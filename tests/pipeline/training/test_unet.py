from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL, DDPMScheduler, StableDiffusionPipeline

from pipeline import families
from pipeline.training import unet
from pipeline.training.images import Images
from pipeline.training.latents import Latents
from pipeline.training.loop import step_generator
from pipeline.training.tokens import TOKENS, make_tokenizer
from pipeline.training.vae import CHANNELS, VaeStage


@pytest.fixture(scope="module")
def vae(images: Images) -> AutoencoderKL:
    return VaeStage(images, images, batch_size=1, seed=0).vae


@pytest.fixture(scope="module")
def latents() -> Latents:
    generator = torch.Generator().manual_seed(0)
    mean = torch.randn(24, CHANNELS, 8, 8, generator=generator).half()
    return Latents(mean, torch.full_like(mean, 0.1))


@pytest.fixture(scope="module")
def stage(images: Images, vae: AutoencoderKL, latents: Latents) -> unet.UNetStage:
    tokenizer = make_tokenizer(images.captions)
    return unet.UNetStage(latents, images.captions, vae, tokenizer, batch_size=4, seed=0)


def test_v_is_what_turns_into_noise_and_picture(latents: Latents) -> None:
    """x_0 = a x_t - s v and noise = s x_t + a v (Salimans and Ho 2022, section 4)."""
    scheduler = DDPMScheduler(**unet._ddpm())
    chosen = torch.arange(8)
    drawn = unet.noised(scheduler, latents, chosen, step_generator(0, 0))
    noisy, v, times = (drawn[name] for name in ("noisy", "v", "times"))
    kept = scheduler.alphas_cumprod[times][:, None, None, None]
    a, s = kept.sqrt(), (1 - kept).sqrt()
    again = step_generator(0, 0)
    clean = latents.draw(chosen, again)
    assert torch.allclose(a * noisy - s * v, clean, atol=1e-5)
    torch.rand(8, generator=again)
    assert torch.allclose(s * noisy + a * v, torch.randn(clean.shape, generator=again), atol=1e-5)
    assert times.min() >= 0
    assert times.max() < 1000


def test_the_loss_is_that_of_a_generator(stage: unet.UNetStage) -> None:
    same, again, other = (stage.loss(stage.draw(step_generator(0, step)))[0].item() for step in (1, 1, 2))
    assert same == again != other


def test_text_and_unet_learn(stage: unet.UNetStage) -> None:
    parameters = stage.parameters()
    assert {name.split(".")[0] for name in parameters} == {"unet", "text_encoder"}
    stage.loss(stage.draw(step_generator(0, 0)))[0].backward()
    silent = [name for name, value in parameters.items() if value.grad is None]
    assert silent == []


def test_captions_are_kept_whole_where_none_is_dropped(stage: unet.UNetStage) -> None:
    """Dropping writes over rows of a copy, never over the captions themselves."""
    before = stage._tokens.clone()
    for step in range(8):
        stage.loss(stage.draw(step_generator(1, step)))
    assert torch.equal(stage._tokens, before)


def test_export_is_what_the_product_loads(
    stage: unet.UNetStage, vae: AutoencoderKL, images: Images, tmp_path: Path
) -> None:
    tokenizer = make_tokenizer(images.captions)
    stage.show(tmp_path, 7)
    assert (tmp_path / "samples-000007.png").stat().st_size > 1000
    unet.export(stage.unet, stage.text_encoder, vae, tokenizer, tmp_path / "backbone")
    pipeline = StableDiffusionPipeline.from_pretrained(tmp_path / "backbone", torch_dtype=torch.float32)
    picture = pipeline("a bird", num_inference_steps=2, height=64, width=64, output_type="np").images
    assert picture.shape == (1, 64, 64, 3)
    family = families.family(tmp_path / "backbone")
    assert family.text_tokens(tmp_path / "backbone") == TOKENS
    assert family.latent_shape(tmp_path / "backbone", (64, 64)) == (CHANNELS, 8, 8)
    backbone = families.load(tmp_path / "backbone", dtype=torch.float32, device="cpu")
    assert len(list(backbone.network.up_blocks)) == 4
