"""What the network sees: text, latents and noise, against the reference's own run and stock diffusers."""

from __future__ import annotations

import shutil
from pathlib import Path

import diffusers
import numpy as np
import pytest
import torch
from safetensors.torch import load_file, save_file
from torch import Tensor

from pipeline import checkpoint, embedded, families
from pipeline.backbone import Backbone
from pipeline.decode import decode
from pipeline.families.stable_diffusion import StableDiffusion
from tests import backbones
from tests.engines import backbone
from tests.tars import pixels

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
EMBEDDED = Path(embedded.BACKBONE)


def distance(ours: Tensor, theirs: Tensor) -> float:
    return float((ours - theirs).norm() / theirs.norm())


def latents(seed: int, batch: int = 3) -> Tensor:
    return torch.randn(batch, 8, 4, 4, generator=torch.Generator().manual_seed(seed))


def load(folder: Path) -> Backbone:
    return families.load(folder, dtype=torch.float32, device="cpu")


def test_parity_with_the_reference() -> None:
    """From the picture's file and the prompt to what went into the reference's network, given its random numbers."""
    for file, model in (("dev.sd15.all", "sd15-tiny"), ("dev.sdxl.all", "sdxl-tiny")):
        golden = load_file(GOLDEN / f"{file}.safetensors")
        tiny = backbone(str(GOLDEN / model))
        picture = decode((GOLDEN / "dev.png").read_bytes(), (64, 64), 10**6)
        mean, std = tiny.encode_images(torch.from_numpy(picture.pixels)[None])
        torch.manual_seed(7)
        sampled = tiny.scale_latents(mean + std * torch.randn(1, 4, 8, 8))
        timestep = tiny.schedule.timestep(50)
        noisy = tiny.schedule.add_noise(sampled, torch.randn(1, 4, 8, 8), timestep)
        text = tiny.encode_text(["a photo of a duck and a tree, high quality"])
        assert timestep == int(golden["__timestep"])
        assert distance(tiny.schedule.scale(noisy, timestep), golden["__unet_input"]) < 5e-6
        assert distance(text["prompt_embeds"], golden["__prompt_embeds"]) < 5e-6
        if "__pooled" in golden:
            assert distance(text["pooled_prompt_embeds"], golden["__pooled"]) < 5e-6


def test_latents_are_a_sample_not_the_mean() -> None:
    """The standard deviation is not its logarithm or its square."""
    tiny = backbone(str(GOLDEN / "sd15-tiny"))
    image = torch.from_numpy(pixels(64, 64).transpose(2, 0, 1).copy())[None]
    vae = diffusers.AutoencoderKL.from_pretrained(GOLDEN / "sd15-tiny", subfolder="vae").eval()
    with torch.no_grad():
        posterior = vae.encode(image / 127.5 - 1).latent_dist
    mean, std = tiny.encode_images(image)
    assert mean.dtype == std.dtype == torch.float32
    assert distance(mean, posterior.mean) < 1e-6 and distance(std, posterior.std) < 1e-6
    assert vae.config.scaling_factor != 1
    assert distance(tiny.scale_latents(mean), posterior.mean * vae.config.scaling_factor) < 1e-6


def test_shifted_latents() -> None:
    """Some VAEs centre their latents."""
    shifted = load(EMBEDDED)
    shifted.vae.register_to_config(shift_factor=0.5, scaling_factor=2.0)
    assert torch.equal(shifted.scale_latents(latents(1)), (latents(1) - 0.5) * 2)


def test_text() -> None:
    """Padded to the encoder's length, cut at its end, and not dependent on the other prompts."""
    loaded = backbone()
    prompts = ["a red bird", "", "a bird " * 100]
    together = loaded.encode_text(prompts)["prompt_embeds"]
    assert together.shape == (3, 40, 128) and together.dtype == torch.float32
    assert together.isfinite().all()
    for place, prompt in enumerate(prompts):
        alone = loaded.encode_text([prompt])["prompt_embeds"]
        assert distance(together[place : place + 1], alone) < 1e-5
        assert distance(together[place], together[place - 1]) > 0.01
    assert StableDiffusion.text_tokens(EMBEDDED) == 40


def test_the_vae_of_half_precision(tmp_path: Path) -> None:
    """Kept in float32 where its config says that float16 overflows, as SDXL's does, and only there."""
    folder = tmp_path / "sdxl"
    shutil.copytree(backbones.tiny("sdxl"), folder)
    assert families.load(folder, dtype=torch.float16, device="cpu").vae.dtype == torch.float32
    config = folder / "vae" / "config.json"
    config.write_text(config.read_text().replace('"force_upcast": true', '"force_upcast": false'))
    assert families.load(folder, dtype=torch.float16, device="cpu").vae.dtype == torch.float16
    assert (
        families.load(backbones.tiny("sdxl"), dtype=torch.bfloat16, device="cpu").vae.dtype == torch.bfloat16
    )


def test_an_image_that_overflows_float16(tmp_path: Path) -> None:
    """Weights that are large enough to: in float16 the latents were not finite."""
    folder = tmp_path / "sdxl"
    shutil.copytree(backbones.tiny("sdxl"), folder)
    vae = diffusers.AutoencoderKL.from_pretrained(folder, subfolder="vae")
    with torch.no_grad():
        vae.encoder.conv_in.weight *= 1e6
    vae.save_pretrained(folder / "vae")
    image = torch.from_numpy(pixels(64, 64).transpose(2, 0, 1).copy())[None]
    with torch.no_grad():
        assert not vae.half().encode((image / 127.5 - 1).half()).latent_dist.mean.isfinite().all()
    mean, std = families.load(folder, dtype=torch.float16, device="cpu").encode_images(image)
    assert mean.isfinite().all() and std.isfinite().all()


def test_latent_shape() -> None:
    assert StableDiffusion.latent_shape(EMBEDDED, [64, 128]) == (
        checkpoint.config(EMBEDDED, "vae")["latent_channels"],
        8,
        16,
    )
    with pytest.raises(
        ValueError, match=r"image_size \[64, 60\]: both sides must be multiples of 8 for this backbone"
    ):
        StableDiffusion.latent_shape(EMBEDDED, [64, 60])
    assert StableDiffusion.latent_shape(GOLDEN / "sd15-tiny", [64, 64]) == (4, 8, 8)


@pytest.mark.parametrize("size", [(8, 8), (8, 72), (104, 40)])
def test_any_multiple_of_the_vae_factor_fits(size: tuple[int, int]) -> None:
    """Latents that cannot be halved at every level, down to a single one, pass through the network all the same."""
    loaded = backbone()
    mean, _ = loaded.encode_images(torch.zeros(1, 3, *size, dtype=torch.uint8))
    assert mean.shape[1:] == StableDiffusion.latent_shape(EMBEDDED, size)
    loaded.predict(loaded.inputs(loaded.network, mean, 51, loaded.encode_text(["a"])))


def test_deterministic_settings() -> None:
    """cuDNN picks kernels by timing otherwise, and TensorFloat-32 halves the digits."""
    torch.backends.cudnn.benchmark = True
    torch.backends.cuda.matmul.allow_tf32 = torch.backends.cudnn.allow_tf32 = True
    load(GOLDEN / "sd15-tiny")
    assert torch.backends.cudnn.deterministic and not torch.backends.cudnn.benchmark
    assert not torch.backends.cuda.matmul.allow_tf32 and not torch.backends.cudnn.allow_tf32


def test_the_same_bytes_from_run_to_run() -> None:
    loaded = backbone()
    image = torch.from_numpy(np.stack([pixels(64, 64, seed).transpose(2, 0, 1) for seed in range(4)]))
    first, second = loaded.encode_images(image), loaded.encode_images(image)
    assert all(torch.equal(*pair) for pair in zip(first, second, strict=True))


@pytest.mark.parametrize(
    ("part", "file"),
    [("text_encoder", "model"), ("unet", "diffusion_pytorch_model"), ("vae", "diffusion_pytorch_model")],
)
def test_weights_are_complete(part: str, file: str, tmp_path: Path) -> None:
    """A tensor that lacks was made up at random, by another draw in each actor, and nothing said so."""
    folder = tmp_path / "cut"
    shutil.copytree(GOLDEN / "sd15-tiny", folder)
    path = folder / part / f"{file}.safetensors"
    tensors = load_file(path)
    name = min(name for name in tensors if name.endswith("weight"))
    save_file({key: value for key, value in tensors.items() if key != name}, path, metadata={"format": "pt"})
    with pytest.raises(
        ValueError, match=f"cut/{part}: .*; the file does not hold what its config.json describes"
    ):
        load(folder)
