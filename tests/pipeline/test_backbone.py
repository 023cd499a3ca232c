"""What the network sees: timesteps, noise, text and latents, against the reference's own run and stock diffusers."""

from __future__ import annotations

from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipeline import embedded
from pipeline.backbone import Backbone, latent_size, load_scheduler, resolve_timestep, text_length
from pipeline.decode import stretch
from tests.engines import backbone, copy_backbone
from tests.tars import pixels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EMBEDDED = Path(embedded.BACKBONE)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def latents(seed: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(seed))


def test_parity_with_the_reference() -> None:
    """From the picture's file and the prompt to what went into the reference's network, given its random numbers."""
    golden = load_file(GOLDEN / "dev.sd15.all.safetensors")
    tiny = backbone(str(GOLDEN / "sd15-tiny"))
    image = Image.open(GOLDEN / "dev.png").convert("RGB")
    mean, std = tiny.encode_images(torch.from_numpy(stretch(image, (64, 64)))[None])
    torch.manual_seed(7)
    sampled = tiny.sample_latents(mean, std, torch.randn(1, 4, 8, 8))
    timestep = resolve_timestep(GOLDEN / "sd15-tiny", 50, None)
    noisy = tiny.add_noise(sampled, torch.randn(1, 4, 8, 8), timestep)
    text = tiny.encode_text(["a photo of a duck and a tree, high quality"])
    assert timestep == int(golden["__timestep"])
    assert distance(noisy, golden["__unet_input"]) < 5e-6
    assert distance(text, golden["__prompt_embeds"]) < 5e-6


EULER = {"_class_name": "EulerDiscreteScheduler"}


@pytest.mark.parametrize(
    ("scheduler", "t", "timestep"),
    [
        ({}, 50, 51),
        ({}, 1, 2),
        ({}, 999, 999),
        ({"steps_offset": 0}, 50, 50),
        ({"_class_name": "DDIMScheduler"}, 50, 50),
        (EULER, 50, 50),
        (EULER, 999, 999),
    ],
)
def test_t_counts_as_the_paper_does(
    tmp_path: Path, scheduler: dict[str, object], t: int, timestep: int
) -> None:
    """PNDM's list has one entry more than others, so t = 50 means timestep 51 there."""
    folder = copy_backbone(tmp_path / "backbone", **scheduler)
    assert resolve_timestep(folder, t, None) == timestep
    assert resolve_timestep(folder, None, 40) == 40


def test_timesteps_outside_the_schedule(tmp_path: Path) -> None:
    """They failed with an IndexError, in the actors. Where noise is no table of sigmas, 0 means hardly any noise."""
    folder = copy_backbone(tmp_path / "backbone", **EULER)
    with pytest.raises(
        ValueError, match=r"timestep 0 is not in the schedule of EulerDiscreteScheduler, .* 1 to 1000"
    ):
        resolve_timestep(folder, None, 0)
    assert resolve_timestep(EMBEDDED, None, 0) == 0


@pytest.mark.parametrize("timestep", [0, 51, 999])
def test_noise_as_the_scheduler_adds_it(timestep: int) -> None:
    scheduler = diffusers.PNDMScheduler.from_pretrained(EMBEDDED, subfolder="scheduler")
    expected = scheduler.add_noise(latents(1), latents(2), torch.full((3,), timestep))
    assert torch.equal(backbone().add_noise(latents(1), latents(2), timestep), expected)


def test_euler_scales_the_input_at_every_timestep(tmp_path: Path) -> None:
    """Euler keeps its place in the schedule from the first call on, so a second timestep got the first one's scale."""
    folder = copy_backbone(tmp_path / "backbone", **EULER)
    euler = Backbone(folder, dtype=torch.float32, device="cpu")
    for timestep in (50, 300, 50):
        scheduler = load_scheduler(folder)
        sigma = scheduler.sigmas[1000 - timestep]
        expected = (latents(1) + sigma * latents(2)) / (sigma**2 + 1) ** 0.5
        assert distance(euler.add_noise(latents(1), latents(2), timestep), expected) < 1e-6


def test_latents_are_a_sample_not_the_mean() -> None:
    """mean + std * draw, scaled; and the standard deviation is not its logarithm or its square."""
    tiny = backbone(str(GOLDEN / "sd15-tiny"))
    image = torch.from_numpy(pixels(64, 64).transpose(2, 0, 1).copy())[None]
    vae = diffusers.AutoencoderKL.from_pretrained(GOLDEN / "sd15-tiny", subfolder="vae").eval()
    with torch.no_grad():
        posterior = vae.encode(image / 127.5 - 1).latent_dist
    mean, std = tiny.encode_images(image)
    draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(0))
    expected = (posterior.mean + posterior.std * draw) * vae.config.scaling_factor
    assert vae.config.scaling_factor != 1 and mean.dtype == std.dtype == torch.float32
    assert distance(tiny.sample_latents(mean, std, draw), expected) < 1e-6
    assert distance(tiny.sample_latents(mean, std, 0 * draw), expected) > 0.01


def test_shifted_latents() -> None:
    """Some VAEs centre their latents."""
    shifted = Backbone(EMBEDDED, dtype=torch.float32, device="cpu")
    shifted.vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    assert torch.equal(
        shifted.sample_latents(latents(1), torch.ones(1), latents(2)), (latents(1) + latents(2) - 0.5) * 2
    )


def test_text() -> None:
    """Padded to the encoder's length, cut at its end, and not dependent on the other prompts."""
    loaded = backbone()
    prompts = ["a red bird", "", "a bird " * 100]
    together = loaded.encode_text(prompts)
    assert together.shape == (3, 40, 128) and together.dtype == torch.float32
    assert together.isfinite().all()
    for place, prompt in enumerate(prompts):
        assert distance(together[place : place + 1], loaded.encode_text([prompt])) < 1e-5
        assert distance(together[place], together[place - 1]) > 0.01
    assert text_length(EMBEDDED) == 40


@pytest.mark.parametrize("dtype", ["bfloat16", "float16"])
def test_half_precision(dtype: str) -> None:
    """Noise is added in float32 and only then rounded; all weights are in the dtype asked for."""
    half = backbone(dtype=dtype)
    expected = getattr(torch, dtype)
    assert {p.dtype for m in (half.unet, half.vae, half.text_encoder) for p in m.parameters()} == {expected}
    noisy = half.add_noise(latents(1), latents(2), 51)
    assert noisy.dtype == expected
    assert torch.equal(noisy, backbone().add_noise(latents(1), latents(2), 51).to(expected))
    mean, std = half.encode_images(torch.zeros(1, 3, 64, 64, dtype=torch.uint8))
    assert mean.dtype == std.dtype == torch.float32 and half.encode_text(["a"]).dtype == expected


def test_latent_size() -> None:
    assert latent_size(EMBEDDED, [64, 128]) == (8, 16)
    with pytest.raises(
        ValueError, match=r"image_size \[64, 60\]: both sides must be multiples of 8 for this VAE"
    ):
        latent_size(EMBEDDED, [64, 60])
    assert latent_size(GOLDEN / "sd15-tiny", [64, 64]) == (8, 8)


@pytest.mark.parametrize("size", [(8, 8), (8, 72), (104, 40)])
def test_any_multiple_of_the_vae_factor_fits(size: tuple[int, int]) -> None:
    """Latents that cannot be halved at every level, down to a single one, pass through the network all the same."""
    loaded = backbone()
    mean, _ = loaded.encode_images(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert mean.shape[2:] == latent_size(EMBEDDED, size)
    loaded.predict(loaded.add_noise(mean, mean, 51), 51, loaded.encode_text(["a"]))


def test_nothing_that_is_not_needed_is_loaded() -> None:
    loaded = backbone()
    assert not hasattr(loaded.vae, "decoder")
    modules = (loaded.unet, loaded.vae, loaded.text_encoder)
    assert not any(p.requires_grad for module in modules for p in module.parameters())
    assert not any(module.training for module in modules)


def test_deterministic_settings() -> None:
    """cuDNN picks kernels by timing otherwise, and TensorFloat-32 halves the digits."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    Backbone(GOLDEN / "sd15-tiny", dtype=torch.float32, device="cpu")
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_the_same_bytes_from_run_to_run() -> None:
    loaded = backbone()
    image = torch.from_numpy(np.stack([pixels(64, 64, seed).transpose(2, 0, 1) for seed in range(4)]))
    first, second = loaded.encode_images(image), loaded.encode_images(image)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))
