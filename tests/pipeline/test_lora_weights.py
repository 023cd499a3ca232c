"""The file holds what training showed, to this package's reader and to stock diffusers; alpha stays with it."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import diffusers
import pytest
import torch
from safetensors import safe_open
from torch import Tensor, nn

from pipeline import checkpoint, families
from pipeline.backbone import Backbone
from pipeline.lora_weights import (
    add_factors,
    count_parameters,
    default_rank,
    sites,
    to_file,
    without_factors,
)
from pipeline.meta import on_meta
from pipeline.techniques.lora import Lora
from schemas import techniques as specs
from tests import backbones

RANK, ALPHA = 4, 3.0
UNETS = ["sd1", "sd2-v", "sdxl", "playground", "if"]


def load(name: str) -> Backbone:
    return families.load(backbones.tiny(name), dtype=torch.float32, device="cpu")


def trained(backbone: Backbone, layers: Any = "locon", seed: int = 0) -> dict[str, nn.Parameter]:
    """Factors, none of them zero."""
    factors = add_factors(backbone.network, layers=layers, rank=RANK, alpha=ALPHA, seed=seed)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for factor in factors.values():
            factor.add_(0.1 * torch.randn(factor.shape, generator=generator))
    return factors


@torch.no_grad()
def output(backbone: Backbone, network: Any = None) -> Tensor:
    """Of a pass over two images."""
    network = network or backbone.network
    text = backbone.encode_text(["a duck", "a tree"])
    shape = backbone.latent_shape(backbone.folder, [64, 64])
    latents = torch.randn(2, *shape, generator=torch.Generator().manual_seed(0))
    inputs = backbone.inputs(network, latents, torch.tensor([51, 700]), text)
    found: Tensor = network(**inputs, return_dict=False)[0]
    return found


def write(factors: dict[str, nn.Parameter], folder: Path) -> Path:
    path = folder / "weights.safetensors"
    path.write_bytes(to_file(factors, ALPHA, {"rank": RANK}))
    return path


def error(found: Tensor, expected: Tensor) -> float:
    return float((found - expected).norm() / expected.norm())


@pytest.mark.parametrize("name", UNETS)
def test_reloaded_is_what_was_trained(name: str, tmp_path: Path) -> None:
    backbone = load(name)
    before = output(backbone)
    expected_file = trained(backbone)
    expected = output(backbone)
    assert error(before, expected) > 0.01
    again = load(name)
    path = write(expected_file, tmp_path)
    Lora(specs.Lora(type="lora", source=str(path)), again).attach()
    assert error(output(again), expected) < 1e-5


@pytest.mark.parametrize("name", UNETS[:-1])
def test_stock_diffusers_reads_the_same(name: str, tmp_path: Path) -> None:
    """Convolutions and alpha included; its reader does not know DeepFloyd IF's added keys and values."""
    backbone = load(name)
    path = write(trained(backbone), tmp_path)
    expected = output(backbone)
    pipe = diffusers.DiffusionPipeline.from_pretrained(backbone.folder)
    pipe.load_lora_weights(str(tmp_path), weight_name=path.name)
    assert error(output(backbone, pipe.unet), expected) < 1e-5


def test_alpha_is_kept(tmp_path: Path) -> None:
    """With every layer, as a number, so that the scale is alpha / rank whoever reads it."""
    path = write(trained(load("sd1")), tmp_path)
    with safe_open(path, "pt") as file:
        keys = set(file.keys())
        downs = {key.removesuffix(".lora_down.weight") for key in keys if key.endswith("lora_down.weight")}
        assert keys == {
            f"{layer}.{role}" for layer in downs for role in ("lora_down.weight", "lora_up.weight", "alpha")
        }
        assert {float(file.get_tensor(f"{layer}.alpha")) for layer in downs} == {ALPHA}
        assert json.loads(file.metadata()["gatehouse"]) == {"rank": RANK}


def test_a_file_is_the_same_bytes_again(tmp_path: Path) -> None:
    """safetensors writes several entries of metadata in any order."""
    factors = trained(load("sd1"))
    about = {"a": 1, "b": [2], "c": {"d": "e"}}
    assert len({to_file(factors, ALPHA, about) for _ in range(8)}) == 1


@pytest.mark.parametrize("layers", ["locon", "linear"])
@pytest.mark.parametrize("name", UNETS)
def test_which_layers(name: str, layers: Any) -> None:
    """Of the blocks, and only these; known without weights."""
    backbone = load(name)
    kinds = (nn.Linear, nn.Conv2d) if layers == "locon" else (nn.Linear,)
    outside = ("conv_in", "conv_out", "time_embedding", "add_embedding", "encoder_hid_proj")
    expected = [
        path
        for path, module in backbone.network.named_modules()
        if isinstance(module, kinds) and not path.startswith(outside)
    ]
    skeleton = on_meta(type(backbone).network_class, checkpoint.config(backbone.folder, "unet"))
    assert sites(skeleton, layers) == expected
    count = count_parameters(skeleton, layers, RANK)
    factors = trained(backbone, layers)
    assert sum(factor.numel() for factor in factors.values()) == count
    assert [*factors] == [f"{path}.lora_{role}" for path in expected for role in ("down", "up")]


def test_only_factors_are_trained_and_in_float32() -> None:
    backbone = families.load(backbones.tiny("sd1"), dtype=torch.bfloat16, device="cpu")
    factors = trained(backbone)
    needing = {id(weight) for weight in backbone.network.parameters() if weight.requires_grad}
    assert needing == {id(factor) for factor in factors.values()}
    assert {factor.dtype for factor in factors.values()} == {torch.float32}
    assert backbone.network.conv_in.weight.dtype == torch.bfloat16


def test_it_begins_as_nothing_and_can_be_left_out() -> None:
    backbone = load("sd1")
    before = output(backbone)
    factors = add_factors(backbone.network, layers="locon", rank=RANK, alpha=ALPHA, seed=0)
    assert torch.equal(output(backbone), before)
    with torch.no_grad():
        for factor in factors.values():
            factor.add_(0.1)
    with without_factors(backbone.network):
        assert torch.equal(output(backbone), before)
    assert error(output(backbone), before) > 0.01


def test_the_seed_makes_the_first_factors() -> None:
    """And nothing else does, nor is torch's own generator moved."""
    network = load("sd1").network
    torch.manual_seed(1)
    state = torch.random.get_rng_state()
    first = add_factors(network, layers="locon", rank=RANK, alpha=ALPHA, seed=5)
    assert torch.equal(torch.random.get_rng_state(), state)
    torch.manual_seed(2)
    again = add_factors(load("sd1").network, layers="locon", rank=RANK, alpha=ALPHA, seed=5)
    other = add_factors(load("sd1").network, layers="locon", rank=RANK, alpha=ALPHA, seed=6)
    assert all(torch.equal(first[name], again[name]) for name in first)
    down = next(iter(first))
    assert not torch.equal(first[down], other[down])


@pytest.mark.parametrize(
    ("channels", "rank"),
    [((320, 640, 1280, 1280), 64), ((320, 640, 1280), 64), ((64, 96), 12), ((8, 16), 4), ((704, 1408), 64)],
)
def test_the_default_rank_follows_the_networks_width(channels: tuple[int, ...], rank: int) -> None:
    assert default_rank({"block_out_channels": channels}) == rank


def test_half_as_large(tmp_path: Path) -> None:
    factors = trained(load("sd1"))
    whole, half = (to_file(factors, ALPHA, {}, dtype) for dtype in ("float32", "float16"))
    assert len(half) < len(whole)
    (tmp_path / "half.safetensors").write_bytes(half)
    with safe_open(tmp_path / "half.safetensors", "pt") as file:
        names = list(file.keys())
        downs = [name for name in names if name.endswith("lora_down.weight")]
        assert {file.get_tensor(name).dtype for name in downs} == {torch.float16}
