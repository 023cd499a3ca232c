"""IP-Adapters beside the stock pipeline's, with LoRA and maps, and what is refused."""

from __future__ import annotations

import hashlib
from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionPipeline, StableDiffusionXLPipeline, UNet2DConditionModel
from PIL import Image
from safetensors.torch import save_file
from torch import Tensor
from transformers import CLIPImageProcessorPil, CLIPVisionConfig, CLIPVisionModelWithProjection

from pipeline import families
from pipeline.backbone import Backbone
from pipeline.families.stable_diffusion import StableDiffusion
from pipeline.taps import Recorder
from pipeline.techniques.base import Pictures
from pipeline.techniques.ip_adapter import IpAdapter, clip_images
from pipeline.techniques.lora import Lora
from schemas import techniques as specs
from tests import backbones, loras
from tests.tars import pixels

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TINY = GOLDEN / "sd15-tiny"
TEXT, EMBEDDING, HIDDEN, SIDE = 32, 16, 24, 32
"""Widths of the UNet's text, of the image encoder's embedding and of its tokens; pixels that it sees."""
WHOLE = np.array([[0, 0, 64, 80]] * 2, np.int32)
PICTURES = Pictures(np.stack([pixels(64, 80, seed).transpose(2, 0, 1) for seed in (1, 2)]), WHOLE)

Tensors = dict[str, Tensor]


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return families.load(TINY, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def encoder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A tiny image encoder with random weights."""
    torch.manual_seed(0)
    config = CLIPVisionConfig(
        hidden_size=HIDDEN,
        intermediate_size=32,
        num_hidden_layers=2,
        num_attention_heads=2,
        image_size=SIDE,
        patch_size=8,
        projection_dim=EMBEDDING,
    )
    folder = tmp_path_factory.mktemp("image-encoder")
    CLIPVisionModelWithProjection(config).save_pretrained(folder)
    return folder


def attention(unet: Any, random: loras.Random) -> Tensors:
    """Keys and values of every cross-attention."""
    cross = [name for name in unet.attn_processors if "attn2" in name]
    found = {}
    for place, name in enumerate(cross):
        for layer in ("to_k", "to_v"):
            shape = getattr(unet.get_submodule(name.removesuffix(".processor")), layer).weight.shape
            found[f"ip_adapter.{2 * place + 1}.{layer}_ip.weight"] = random(*shape)
    return found


def standard(text: int = TEXT) -> Tensors:
    random = loras.Random(1)
    return {
        "image_proj.proj.weight": random(4 * text, EMBEDDING),
        "image_proj.proj.bias": random(4 * text),
        "image_proj.norm.weight": random(text),
        "image_proj.norm.bias": random(text),
    }


def plus() -> Tensors:
    random, width, inner = loras.Random(2), 8, 64
    tensors = {
        "latents": random(1, 5, width),
        "proj_in.weight": random(width, HIDDEN),
        "proj_in.bias": random(width),
        "proj_out.weight": random(TEXT, width),
        "proj_out.bias": random(TEXT),
        "norm_out.weight": random(TEXT),
        "norm_out.bias": random(TEXT),
    }
    for layer in range(4):
        for norm in ("0.norm1", "0.norm2", "1.0"):
            tensors[f"layers.{layer}.{norm}.weight"] = random(width)
            tensors[f"layers.{layer}.{norm}.bias"] = random(width)
        tensors[f"layers.{layer}.0.to_q.weight"] = random(inner, width)
        tensors[f"layers.{layer}.0.to_kv.weight"] = random(2 * inner, width)
        tensors[f"layers.{layer}.0.to_out.weight"] = random(width, inner)
        tensors[f"layers.{layer}.1.1.weight"] = random(4 * width, width)
        tensors[f"layers.{layer}.1.3.weight"] = random(width, 4 * width)
    return {f"image_proj.{key}": value for key, value in tensors.items()}


def full_face() -> Tensors:
    random = loras.Random(3)
    return {
        "image_proj.proj.0.weight": random(HIDDEN, HIDDEN),
        "image_proj.proj.0.bias": random(HIDDEN),
        "image_proj.proj.2.weight": random(TEXT, HIDDEN),
        "image_proj.proj.2.bias": random(TEXT),
        "image_proj.proj.3.weight": random(TEXT),
        "image_proj.proj.3.bias": random(TEXT),
    }


@pytest.fixture(scope="module")
def path(backbone: Backbone, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A standard adapter."""
    return save(tmp_path_factory.mktemp("standard"), backbone.network, standard())


def save(folder: Path, unet: Any, projection: Tensors) -> Path:
    save_file(projection | attention(unet, loras.Random(0)), folder / "ip.safetensors")
    return folder / "ip.safetensors"


def spec(path: Path, encoder: Path, scale: float = 0.7) -> specs.IpAdapter:
    return specs.IpAdapter(type="ip-adapter", source=str(path), image_encoder=str(encoder), scale=scale)


def inputs(backbone: Backbone) -> dict[str, Any]:
    latents = torch.randn(2, 4, 8, 10, generator=torch.Generator().manual_seed(0))
    return backbone.inputs(
        backbone.network, latents, torch.tensor(51), backbone.encode_text(["a duck", "a tree"])
    )


def predicted(backbone: Backbone, technique: IpAdapter) -> Tensor:
    technique.attach()
    found = backbone.predict(technique.steer(technique.look(PICTURES), inputs(backbone)))
    technique.detach()
    return found


def difference(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


def watch(pipe: Any) -> list[tuple[tuple[Any, ...], dict[str, Any], Tensor]]:
    """What its UNet gets and gives, from now on."""
    calls: list[tuple[tuple[Any, ...], dict[str, Any], Tensor]] = []
    pipe.unet.register_forward_hook(
        lambda module, args, kwargs, output: calls.append((args, kwargs, output[0])), with_kwargs=True
    )
    pipe.set_progress_bar_config(disable=True)
    return calls


@pytest.mark.parametrize("projection", [standard, plus, full_face])
def test_the_same_as_the_stock_pipeline(
    projection: Callable[[], Tensors], backbone: Backbone, encoder: Path, tmp_path: Path
) -> None:
    """A whole call of it, which is watched for what its UNet gets and gives."""
    before = backbone.predict(inputs(backbone))
    path = save(tmp_path, backbone.network, projection())
    technique = IpAdapter(spec(path, encoder), backbone)
    stock: Any = StableDiffusionPipeline.from_pretrained(
        TINY,
        safety_checker=None,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
    )
    stock.load_ip_adapter(tmp_path, subfolder="", weight_name=path.name)
    stock.set_ip_adapter_scale(0.7)
    calls = watch(stock)
    for place, picture in enumerate(PICTURES.pixels):
        call = inputs(backbone)
        stock(
            prompt_embeds=call["encoder_hidden_states"][place, None],
            ip_adapter_image=Image.fromarray(picture.transpose(1, 2, 0)),
            latents=call["sample"][place, None],
            guidance_scale=1.0,
            num_inference_steps=1,
            output_type="latent",
        )
        (latents, timestep), kwargs, expected = calls.pop()
        calls.clear()
        call |= {"sample": latents.expand(2, -1, -1, -1), "timestep": timestep}
        call["encoder_hidden_states"] = kwargs["encoder_hidden_states"].expand(2, -1, -1)
        technique.attach()
        found = backbone.predict(technique.steer(technique.look(PICTURES), call))[place, None]
        technique.detach()
        assert difference(found, expected) < 1e-5
    assert difference(predicted(backbone, technique), before) > 0.01
    assert torch.equal(backbone.predict(inputs(backbone)), before)


@pytest.mark.parametrize("size", [(64, 64), (64, 80), (120, 50), (32, 32), (20, 33)])
def test_clip_sees_what_transformers_shows_it(size: tuple[int, int]) -> None:
    pictures = [pixels(*size, seed) for seed in (1, 2)]
    expected = CLIPImageProcessorPil(size=SIDE, crop_size=SIDE)(
        [Image.fromarray(one) for one in pictures], return_tensors="pt"
    ).pixel_values
    found = clip_images(np.stack([one.transpose(2, 0, 1) for one in pictures]), SIDE)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-6)


def test_scale(backbone: Backbone, path: Path, encoder: Path) -> None:
    """Of each technique its own, though they share an adapter that is loaded once, and look at pictures once."""
    weak, strong = (IpAdapter(spec(path, encoder, scale), backbone) for scale in (0.0, 1.0))
    assert weak._loaded is strong._loaded
    assert weak.sight == strong.sight
    plain = backbone.predict(inputs(backbone))
    effect = difference(predicted(backbone, strong), plain)
    assert effect > 0.01
    assert difference(predicted(backbone, weak), plain) < 1e-6
    assert difference(predicted(backbone, strong), plain) == effect


def test_with_lora_and_maps(backbone: Backbone, path: Path, encoder: Path, tmp_path: Path) -> None:
    """Attached and detached in any order; the network is what it was, and maps are those of its own projections."""
    made = loras.kohya(backbone.network, backbone.encoders["text_encoder"])
    low_rank = Lora(
        specs.Lora(type="lora", source=str(made.save(tmp_path / "weights.safetensors"))), backbone
    )
    adapter = IpAdapter(spec(path, encoder), backbone)
    taps = ["down-level0-repeat0-vit-block0-cross-map", "mid-vit-block0-self-map", "unet-out"]
    call = inputs(backbone)
    seen = adapter.look(PICTURES)

    def recorded(with_adapter: bool) -> dict[str, Tensor]:
        steered = adapter.steer(seen, call) if with_adapter else call
        return Recorder(backbone.network, taps).run(lambda: backbone.predict(steered))

    network = backbone.network
    plain, processors = recorded(False), network.attn_processors
    low_rank.attach()
    adapter.attach()
    both = recorded(True)
    adapter.detach()
    one = recorded(False)
    adapter.attach()
    low_rank.detach()
    other = recorded(True)
    low_rank.attach()
    again = recorded(True)
    low_rank.detach()
    adapter.detach()
    assert all(torch.equal(again[tap], both[tap]) for tap in taps)
    after = recorded(False)
    assert all(torch.equal(after[tap], plain[tap]) for tap in taps)
    assert network.attn_processors == processors  # the very same objects
    assert network.encoder_hid_proj is None and network.config.encoder_hid_dim_type is None
    outputs = [found["unet-out"] for found in (plain, one, other, both)]
    assert all(difference(a, b) > 0.01 for place, a in enumerate(outputs) for b in outputs[:place])
    first = taps[0]  # comes before any cross-attention has had an effect
    assert torch.equal(other[first], plain[first])
    assert both[first].shape == plain[first].shape


def test_the_same_as_the_stock_pipeline_of_sdxl(encoder: Path, tmp_path: Path) -> None:
    """The pooled text and time ids stay beside the picture."""
    folder = backbones.tiny("sdxl")
    unet = UNet2DConditionModel.from_pretrained(folder, subfolder="unet").eval()
    path = save(tmp_path, unet, standard(unet.config.cross_attention_dim))
    backbone: Any = SimpleNamespace(network=unet, device=torch.device("cpu"), dtype=torch.float32, extras={})
    technique = IpAdapter(spec(path, encoder), backbone)
    stock: Any = StableDiffusionXLPipeline.from_pretrained(
        folder,
        image_encoder=CLIPVisionModelWithProjection.from_pretrained(encoder),
        feature_extractor=CLIPImageProcessorPil(size=SIDE, crop_size=SIDE),
    )
    stock.load_ip_adapter(tmp_path, subfolder="", weight_name=path.name)
    stock.set_ip_adapter_scale(0.7)
    calls = watch(stock)
    stock(
        prompt="a duck",
        ip_adapter_image=Image.fromarray(PICTURES.pixels[0].transpose(1, 2, 0)),
        latents=torch.randn(1, 4, 8, 8, generator=torch.Generator().manual_seed(0)),
        guidance_scale=1.0,
        num_inference_steps=1,
        output_type="latent",
    )
    (((latents, timestep), kwargs, expected),) = calls
    given = {key: kwargs["added_cond_kwargs"][key] for key in ("text_embeds", "time_ids")}
    call = {
        "sample": latents,
        "timestep": timestep,
        "encoder_hidden_states": kwargs["encoder_hidden_states"],
        "added_cond_kwargs": given,
    }
    technique.attach()
    with torch.no_grad():
        found = unet(**technique.steer(technique.look(Pictures(PICTURES.pixels[:1], WHOLE[:1])), call)).sample
    assert difference(found, expected) < 1e-5
    assert set(given) == {"text_embeds", "time_ids"}  # the call's own is left alone


def test_a_row_by_itself(backbone: Backbone, path: Path, encoder: Path) -> None:
    adapter = IpAdapter(spec(path, encoder), backbone)
    both = adapter.look(PICTURES)
    turned = adapter.look(Pictures(PICTURES.pixels[::-1].copy(), WHOLE))
    assert torch.equal(both, turned.flip(0))


def check(path: Path, encoder: Path, family: type[Backbone] = StableDiffusion, folder: Path = TINY) -> Any:
    return IpAdapter.check(spec(path, encoder), family, folder)


def test_check_hashes_what_is_loaded(backbone: Backbone, path: Path, encoder: Path) -> None:
    files = check(path, encoder)
    assert set(files) == {"ip-adapter", "image-encoder/config.json", "image-encoder/model.safetensors"}
    assert files["ip-adapter"] == hashlib.sha256(path.read_bytes()).hexdigest()


@pytest.mark.parametrize("projection", [plus, full_face])
def test_check_knows_kinds(
    projection: Callable[[], Tensors], backbone: Backbone, encoder: Path, tmp_path: Path
) -> None:
    check(save(tmp_path, backbone.network, projection()), encoder)


def test_check_refuses_another_backbones(encoder: Path, tmp_path: Path) -> None:
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "sdxl-tiny", subfolder="unet")
    path = save(tmp_path, unet, standard(unet.config.cross_attention_dim))
    message = r"does not fit the backbone: \d+ of its layers differ, first ip_adapter\.1.*, which is \[.*text of width"
    with pytest.raises(ValueError, match=message):
        check(path, encoder)


def test_check_refuses_another_projection(backbone: Backbone, encoder: Path, tmp_path: Path) -> None:
    with pytest.raises(ValueError, match="it makes tokens of width 48, and the UNet reads 32"):
        check(save(tmp_path, backbone.network, standard(48)), encoder)
    with pytest.raises(ValueError, match="of no kind that is supported"):
        check(save(tmp_path, backbone.network, {"image_proj.norm.weight": torch.ones(2)}), encoder)


def test_check_refuses_another_image_encoder(path: Path, tmp_path: Path) -> None:
    config = CLIPVisionConfig(
        hidden_size=8, intermediate_size=8, num_hidden_layers=1, num_attention_heads=1, projection_dim=9
    )
    CLIPVisionModelWithProjection(config).save_pretrained(tmp_path)
    with pytest.raises(
        ValueError, match="its projection_dim is 9, and the adapter takes 16; take the encoder"
    ):
        check(path, tmp_path)
    with pytest.raises(
        ValueError, match=r"image_encoder '.*unet' is a None; a CLIPVisionModelWithProjection"
    ):
        check(path, TINY / "unet")


def test_check_refuses_other_files(encoder: Path, tmp_path: Path) -> None:
    torch.save({"a": 1}, tmp_path / "pickle.safetensors")
    with pytest.raises(ValueError, match="is no safetensors file"):
        check(tmp_path / "pickle.safetensors", encoder)
    save_file({"a.weight": torch.ones(1)}, tmp_path / "other.safetensors")
    with pytest.raises(
        ValueError, match=r"is no IP-Adapter: it needs keys image_proj\.\* and ip_adapter\.\*, and"
    ):
        check(tmp_path / "other.safetensors", encoder)


def test_check_refuses_other_families(path: Path, encoder: Path) -> None:
    class Transformer(StableDiffusion):
        network_class = torch.nn.Transformer

    with pytest.raises(ValueError, match="are for Stable Diffusion and SDXL, and this backbone is a"):
        check(path, encoder, Transformer)
