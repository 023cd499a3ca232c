from __future__ import annotations

from pathlib import Path

import pytest
import torch
from diffusers import AutoencoderKL

from pipeline.training import vae
from pipeline.training.images import Images, as_input
from pipeline.training.latents import encode
from pipeline.training.loop import step_generator


@pytest.fixture(scope="module")
def stage(images: Images) -> vae.VaeStage:
    return vae.VaeStage(images, images, batch_size=2, seed=0)


def test_psnr() -> None:
    image = torch.zeros(1, 3, 4, 4)
    assert vae.psnr(image + 0.2, image).item() == pytest.approx(20)  # 10 log10(2^2 / 0.2^2)
    assert vae.psnr(torch.full_like(image, 9), image + 1).item() == float("inf")  # clipped to white


def test_the_loss_falls_as_reconstruction_improves(stage: vae.VaeStage, images: Images) -> None:
    optimizer = torch.optim.AdamW(stage.parameters().values(), lr=2e-3)
    losses = []
    for _ in range(12):
        loss, logged = stage.loss(stage.draw(step_generator(0, 3)))  # the same crops again
        losses.append(loss.item())
        assert logged.keys() == {"absolute", "psnr", "kl"}
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
    assert losses[-1] < 0.8 * losses[0]


def test_crops_are_of_the_images(images: Images) -> None:
    """64 px scenes: a crop is a whole one, so each must be one of the images."""
    stage = vae.VaeStage(images, images, batch_size=3, seed=0)
    crops = stage.draw(step_generator(0, 0))["crops"]
    assert crops.shape == (3, 3, 64, 64)
    assert all(any(torch.equal(crop, image) for image in images.pixels) for crop in crops)


def test_normalised_latents_decode_to_the_same(stage: vae.VaeStage, images: Images) -> None:
    model, x = stage.vae, as_input(images.pixels)
    with torch.no_grad():
        before = model.encode(x).latent_dist
        decoded = model.decode(before.mean).sample
        vae.normalise(model, images)
        after = model.encode(x).latent_dist
        assert torch.allclose(after.mean.mean((0, 2, 3)), torch.zeros(vae.CHANNELS), atol=1e-3)
        assert torch.allclose(after.mean.std((0, 2, 3)), torch.ones(vae.CHANNELS), atol=1e-3)
        assert torch.allclose(model.decode(after.mean).sample, decoded, atol=1e-3)
        scale = before.mean.std((0, 2, 3))[:, None, None]
        assert torch.allclose(after.std * scale, before.std, rtol=1e-3)


def test_export_is_a_stock_model_in_float16(stage: vae.VaeStage, images: Images, tmp_path: Path) -> None:
    with torch.no_grad():
        expected = stage.vae.encode(as_input(images.pixels[:2])).latent_dist.mean
    vae.export(stage.vae, tmp_path)
    loaded = AutoencoderKL.from_pretrained(tmp_path, torch_dtype=torch.float32)
    stage.vae.float()
    with torch.no_grad():
        found = loaded.encode(as_input(images.pixels[:2])).latent_dist.mean
    assert torch.allclose(found, expected, atol=2e-2)
    assert loaded.config.scaling_factor == 1
    assert (tmp_path / "diffusion_pytorch_model.safetensors").stat().st_size < 7 * 2**20


def test_latents_are_cached(stage: vae.VaeStage, images: Images, tmp_path: Path) -> None:
    cache = tmp_path / "latents.safetensors"
    first = encode(stage.vae, images, cache, batch_size=10)
    assert first.mean.shape == first.std.shape == (24, vae.CHANNELS, 8, 8)
    again = encode(torch.nn.Identity(), images, cache)  # is not called
    assert torch.equal(again.mean, first.mean)
    drawn = first.draw(torch.tensor([3, 4]), step_generator(0, 0))
    assert torch.allclose(drawn, first.mean[3:5].float(), atol=8 * float(first.std.max()))
    assert not torch.equal(drawn, first.mean[3:5].float())
