"""What each family gives its network, beside what diffusers' own pipeline gives it for the same prompt and latents."""

from __future__ import annotations

import inspect
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from torch import Tensor, nn

from pipeline import families
from tests import backbones

SIZE = (64, 96)  # height and width differ, so that none is taken for the other
PROMPTS = ["A photo of a Duck, 3 trees & no dog ", "long " * 200]


class Seen(Exception):
    """The network was called."""


def stock_call(folder: Path, **options: Any) -> tuple[dict[str, Any], nn.Module]:
    """The arguments of the network's first call in diffusers' pipeline, without those that are None; the network."""
    absent = {name: None for name in ("text_encoder_3", "tokenizer_3") if name not in components(folder)}
    pipe = diffusers.DiffusionPipeline.from_pretrained(folder, **(absent if folder.name == "sd3" else {}))
    pipe.set_progress_bar_config(disable=True)
    network = getattr(pipe, "unet", None) or pipe.transformer
    seen: dict[str, Any] = {}

    def look(module: nn.Module, args: tuple[Any, ...], kwargs: dict[str, Any]) -> None:
        seen.update(inspect.signature(module.forward).bind(*args, **kwargs).arguments)
        raise Seen

    network.register_forward_pre_hook(look, with_kwargs=True)
    if "use_resolution_binning" in inspect.signature(pipe.__call__).parameters:
        options["use_resolution_binning"] = False
    if (
        "true_cfg_scale" not in inspect.signature(pipe.__call__).parameters
    ):  # FLUX is told its scale, and has one pass
        options["guidance_scale"] = 1.0
    with pytest.raises(Seen):
        pipe(PROMPTS, height=SIZE[0], width=SIZE[1], num_inference_steps=2, **options)
    seen.pop("return_dict")
    return without_none(seen), network


def components(folder: Path) -> list[str]:
    return [path.name for path in folder.iterdir()]


def without_none(given: Mapping[str, Any]) -> dict[str, Any]:
    """Nothing is the same as None, and as an empty dict."""
    cleaned = {name: without_none(one) if isinstance(one, dict) else one for name, one in given.items()}
    return {name: one for name, one in cleaned.items() if one is not None and one != {}}


def assert_same(ours: Any, theirs: Any, name: str) -> None:
    if isinstance(theirs, dict):
        assert ours.keys() == theirs.keys(), name
        for key in theirs:
            assert_same(ours[key], theirs[key], f"{name}.{key}")
    elif isinstance(theirs, tuple):
        for one, other in zip(ours, theirs, strict=True):
            assert_same(one, other, name)
    elif name == ".timestep" and theirs.ndim == 0:
        assert torch.as_tensor(ours) == theirs
    else:
        assert (ours.shape, ours.dtype) == (theirs.shape, theirs.dtype), name
        torch.testing.assert_close(ours, theirs, rtol=1e-5, atol=1e-6, msg=lambda text: f"{name}: {text}")


def latents_of(given: dict[str, Any], folder: Path) -> Tensor:
    tokens: Tensor = given["sample"] if "sample" in given else given["hidden_states"]
    if folder.name.startswith("flux"):
        return diffusers.FluxPipeline._unpack_latents(tokens, *SIZE, 8)
    return tokens


def compare(folder: Path) -> tuple[dict[str, Any], Any]:
    """The network's inputs, ours and diffusers', are the same."""
    theirs, network = stock_call(folder)
    backbone = families.load(folder, dtype=torch.float32, device="cpu")
    ours = backbone.inputs(
        network, latents_of(theirs, folder), given_timestep(theirs), backbone.encode_text(PROMPTS)
    )
    assert_same(without_none(ours), theirs, "")
    return ours, backbone


def given_timestep(given: dict[str, Any]) -> Tensor:
    """A single number, as the engine has it."""
    timestep: Tensor = given["timestep"].flatten()[0]
    return timestep * 1000 if "txt_ids" in given else timestep


@pytest.mark.parametrize("family", backbones.FAMILIES)
def test_the_network_gets_what_diffusers_gives_it(family: str) -> None:
    ours, backbone = compare(backbones.tiny(family))
    latents = latents_of(ours, Path(family))
    estimate = backbone.estimate(backbone.predict(ours), latents)
    assert estimate.shape == latents.shape and estimate.isfinite().all()


def test_sd3_without_t5(tmp_path: Path) -> None:
    """The largest of its encoders may be left out; diffusers has zeros in its place."""
    pipe = diffusers.StableDiffusion3Pipeline.from_pretrained(
        backbones.tiny("sd3"), text_encoder_3=None, tokenizer_3=None
    )
    folder = tmp_path / "sd3"
    pipe.save_pretrained(folder)
    assert "text_encoder_3" not in components(folder)
    ours, _ = compare(folder)
    assert ours["encoder_hidden_states"][:, 77:].abs().max() == 0


def test_flux_schnell_reads_half_as_many_tokens(tmp_path: Path) -> None:
    """Without guidance it is schnell, which was distilled with 256 tokens: diffusers' documentation says so."""
    pipe = diffusers.FluxPipeline.from_pretrained(backbones.tiny("flux"))
    config = {**pipe.transformer.config, "guidance_embeds": False}
    pipe.register_modules(transformer=diffusers.FluxTransformer2DModel.from_config(config))
    folder = tmp_path / "flux"
    pipe.save_pretrained(folder)
    theirs, network = stock_call(folder, max_sequence_length=256)
    backbone = families.load(folder, dtype=torch.float32, device="cpu")
    latents, timestep = latents_of(theirs, folder), given_timestep(theirs)
    ours = backbone.inputs(network, latents, timestep, backbone.encode_text(PROMPTS))
    assert_same(without_none(ours), theirs, "")
    assert backbone.text_tokens(folder) == 256 and "guidance" not in without_none(ours)


def test_pixart_as_it_was_first_published(tmp_path: Path) -> None:
    """The configs of PixArt-Alpha name another class, and do not say whether the picture's size is an input."""
    folder = tmp_path / "pixart-alpha"
    shutil.copytree(backbones.tiny("pixart-alpha"), folder)
    path = folder / "transformer" / "config.json"
    text = path.read_text().replace('"PixArtTransformer2DModel"', '"Transformer2DModel"')
    path.write_text(text.replace('"use_additional_conditions": true', '"double_self_attention": false'))
    assert path.read_text() != (backbones.tiny("pixart-alpha") / "transformer" / "config.json").read_text()
    index = folder / "model_index.json"
    index.write_text(index.read_text().replace('"PixArtTransformer2DModel"', '"Transformer2DModel"'))
    ours, _ = compare(folder)
    assert ours["added_cond_kwargs"]["resolution"].tolist() == [[64, 96]] * 2


@pytest.mark.parametrize("family", ["sd1", "sdxl", "sd3", "flux"])
def test_latents_are_those_of_image_to_image(family: str) -> None:
    """Sampled, shifted and scaled, given the same draw."""
    pipe: Any = diffusers.AutoPipelineForImage2Image.from_pretrained(backbones.tiny(family))
    pixels = torch.randint(
        0, 256, (1, 3, *SIZE), dtype=torch.uint8, generator=torch.Generator().manual_seed(1)
    )
    image = pixels / 127.5 - 1
    generator = torch.Generator().manual_seed(2)
    with torch.no_grad():
        if family == "flux":
            expected = pipe._encode_vae_image(image, generator)
        else:  # at timestep 0, where as good as no noise is added
            pipe.scheduler = diffusers.DDIMScheduler(beta_start=1e-12, beta_end=1e-12)
            pipe.scheduler.scale_noise = lambda sample, timestep, noise: sample
            where: tuple[Any, ...] = (torch.float32, torch.device("cpu"), generator)
            expected = pipe.prepare_latents(image, torch.tensor([0]), 1, 1, *where)
    backbone = families.load(backbones.tiny(family), dtype=torch.float32, device="cpu")
    mean, std = backbone.encode_images(pixels)
    draw = torch.randn(mean.shape, generator=torch.Generator().manual_seed(2))
    torch.testing.assert_close(backbone.scale_latents(mean + std * draw), expected, rtol=1e-4, atol=1e-4)
    assert mean.dtype == std.dtype == torch.float32 and std.min() > 0
