"""Names of layers: unambiguous in every family's network, and Stability's as diffusers reads them for SDXL."""

from __future__ import annotations

import re
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import diffusers
import pytest
import torch
from diffusers import StableDiffusionXLPipeline, UNet2DConditionModel
from torch import nn

from pipeline.techniques.lora import Lora
from pipeline.techniques.lora_files import NETWORK, LoraFile
from pipeline.techniques.lora_layers import locate, spellings
from schemas import techniques as specs
from tests import backbones, loras

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
STABILITY = re.compile(r"(input_blocks|middle_block|output_blocks|time_embed|label_emb|out)\W.+")


def stability_names(unet: nn.Module) -> dict[str, str]:
    """Layer -> its name in Stability's code."""
    return {path: name for name, path in spellings(unet).items() if STABILITY.fullmatch(name)}


@pytest.fixture(scope="module")
def sdxl() -> Any:
    return UNet2DConditionModel.from_pretrained(GOLDEN / "sdxl-tiny", subfolder="unet").eval()


def test_every_layer_of_sdxl_in_stability_names(sdxl: Any, tmp_path: Path) -> None:
    """A LoCon of the whole UNet, here and by stock diffusers, which maps the names on its own."""
    random, made, names = loras.Random(), loras.Written(), stability_names(sdxl)
    assert set(names) == set(spellings(sdxl).values())
    for layer, name in names.items():
        key = f"lora_unet_{name.replace('.', '_')}"
        shape = loras.weight(sdxl, layer).shape
        loras.lora(made, random, shape, f"{key}.lora_down.weight", f"{key}.lora_up.weight")
        made.tensors[f"{key}.alpha"] = torch.tensor(0.5)
    path = made.save(tmp_path / "weights.safetensors")
    before = output(sdxl)
    backbone: Any = SimpleNamespace(network=sdxl, encoders={}, extras={}, device="cpu")
    technique = Lora(specs.Lora(type="lora", source=str(path)), backbone)
    technique.attach()
    found = output(sdxl)
    technique.detach()
    others = ("vae", "text_encoder", "text_encoder_2", "tokenizer", "tokenizer_2", "scheduler")
    stock: Any = StableDiffusionXLPipeline(unet=sdxl, **dict.fromkeys(others))
    stock.load_lora_weights(dict(made.tensors))
    expected = output(sdxl)
    stock.unload_lora_weights()
    assert float((found - expected).norm() / expected.norm()) < 1e-5
    assert float((found - before).norm() / before.norm()) > 0.05


@torch.no_grad()
def output(sdxl: Any) -> torch.Tensor:
    generator = torch.Generator().manual_seed(0)
    config = sdxl.config
    width = config.projection_class_embeddings_input_dim - 6 * config.addition_time_embed_dim
    added = {
        "text_embeds": torch.randn(1, width, generator=generator),
        "time_ids": torch.tensor([[64.0, 64, 0, 0, 64, 64]]),
    }
    latents = torch.randn(1, 4, 8, 8, generator=generator)
    text = torch.randn(1, 77, config.cross_attention_dim, generator=generator)
    found: torch.Tensor = sdxl(latents, torch.tensor(50), text, added_cond_kwargs=added).sample
    return found


def test_stability_names_of_stable_diffusion() -> None:
    """Where a level has no attention, its upsampler comes second. Names from the original checkpoint's keys."""
    unet = UNet2DConditionModel.from_pretrained(GOLDEN / "sd15-tiny", subfolder="unet")
    names = stability_names(unet)
    assert names["up_blocks.0.upsamplers.0.conv"] == "output_blocks.2.1.conv"
    assert names["up_blocks.1.upsamplers.0.conv"] == "output_blocks.5.2.conv"
    assert names["up_blocks.3.attentions.2.proj_out"] == "output_blocks.11.1.proj_out"
    assert names["down_blocks.3.resnets.1.conv1"] == "input_blocks.11.0.in_layers.2"
    assert names["mid_block.attentions.0.proj_out"] == "middle_block.1.proj_out"
    assert names["time_embedding.linear_2"] == "time_embed.2"


PREFIXES = {
    "unet": ("unet.", "lora_unet_"),
    "transformer": ("transformer.", "lora_transformer_"),
    "text_encoder": ("text_encoder.", "lora_te1_"),
    "text_encoder_2": ("text_encoder_2.", "lora_te2_"),
    "text_encoder_3": ("text_encoder_3.", "lora_te3_"),
}


@pytest.mark.parametrize("family", backbones.FAMILIES)
def test_every_layer_of_every_family(family: str, tmp_path: Path) -> None:
    """In diffusers' names and in kohya's: each is found, and none is taken for another."""
    pipe = backbones.FAMILIES[family]()
    components = {name: getattr(pipe, name) for name in PREFIXES if hasattr(pipe, name)}
    parts = {NETWORK if name in ("unet", "transformer") else name: one for name, one in components.items()}
    for kohya in (False, True):
        made, random, expected = loras.Written(), loras.Random(), set()
        for name, part in zip(components, parts, strict=True):
            for path in set(spellings(parts[part]).values()):
                key = PREFIXES[name][kohya] + (path.replace(".", "_") if kohya else path)
                shape = loras.weight(parts[part], path).shape
                loras.lora(made, random, shape, f"{key}.lora_down.weight", f"{key}.lora_up.weight")
                expected.add((part, path))
        file = LoraFile(made.save(tmp_path / "weights.safetensors"), "weights")
        assert set(locate(file, parts, family).values()) == expected
        assert len(expected) > 40


def test_a_transformer(tmp_path: Path) -> None:
    """Every layer of SD3's, as diffusers and PEFT merge it."""
    torch.manual_seed(0)
    network: Any = diffusers.SD3Transformer2DModel(
        num_layers=2,
        num_attention_heads=2,
        attention_head_dim=8,
        joint_attention_dim=16,
        caption_projection_dim=16,
        pooled_projection_dim=16,
        dual_attention_layers=(0,),
    )
    random, made = loras.Random(), loras.Written()
    layers = sorted(set(spellings(network).values()))
    for layer in layers:
        key, shape = f"transformer.{layer}", loras.weight(network, layer).shape
        loras.lora(made, random, shape, f"{key}.lora_A.weight", f"{key}.lora_B.weight")
    backbone: Any = SimpleNamespace(network=network, encoders={}, extras={}, device="cpu")
    path = made.save(tmp_path / "weights.safetensors")
    technique = Lora(specs.Lora(type="lora", source=str(path), scale=0.7), backbone)
    technique.attach()
    found = [loras.weight(network, layer).clone() for layer in layers]
    technique.detach()
    network.load_lora_adapter(dict(made.tensors), prefix="transformer")
    network.fuse_lora(lora_scale=0.7)
    for layer, weight in zip(layers, found, strict=True):
        torch.testing.assert_close(weight, network.get_submodule(layer).base_layer.weight)
