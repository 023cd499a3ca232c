"""ControlNets beside stock diffusers: their residuals, their control images, and what does not fit."""

from __future__ import annotations

import hashlib
import json
import shutil
from pathlib import Path
from typing import Any

import cv2
import diffusers
import numpy as np
import pytest
import torch
from torch import Tensor

from pipeline import families
from pipeline.backbone import Backbone
from pipeline.families.stable_diffusion import StableDiffusion
from pipeline.techniques.base import Pictures
from pipeline.techniques.controlnet import ControlNet, canny
from schemas import techniques as specs
from tests.tars import pixels

GOLDEN = Path(__file__).parents[2] / "data" / "golden"
TINY, CANNY = GOLDEN / "sd15-tiny", GOLDEN / "controlnet-canny-tiny"
WHOLE = np.array([[0, 0, 64, 64]] * 2, np.int32)
PICTURES = Pictures(np.stack([pixels(64, 64, seed).transpose(2, 0, 1) for seed in (1, 2)]), WHOLE)


@pytest.fixture(scope="module")
def backbone() -> Backbone:
    return families.load(TINY, dtype=torch.float32, device="cpu")


def spec(**fields: Any) -> specs.ControlNet:
    return specs.ControlNet.model_validate({"type": "controlnet", "source": str(CANNY), **fields})


def inputs(backbone: Backbone) -> dict[str, Any]:
    latents = torch.randn(2, 4, 8, 8, generator=torch.Generator().manual_seed(0))
    text = backbone.encode_text(["a duck", "a tree"])
    return backbone.inputs(backbone.network, latents, torch.tensor(51), text)


def predicted(backbone: Backbone, *techniques: ControlNet, pictures: Pictures = PICTURES) -> Tensor:
    call = inputs(backbone)
    for technique in techniques:
        call = technique.steer(technique.look(pictures), call)
    return backbone.predict(call)


def test_the_same_as_the_stock_pipeline(backbone: Backbone) -> None:
    """One step of stock diffusers' own loop, with a scale that is not 1."""
    stock = diffusers.ControlNetModel.from_pretrained(CANNY).eval()
    call = inputs(backbone)
    edges = np.stack([cv2.Canny(pixels(64, 64, seed), 50, 120) for seed in (1, 2)])
    image = torch.from_numpy(edges)[:, None].expand(-1, 3, -1, -1).float() / 255
    with torch.no_grad():
        down, mid = stock(**call, controlnet_cond=image, conditioning_scale=0.7, return_dict=False)
        expected = backbone.network(
            **call, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    found = predicted(backbone, ControlNet(spec(scale=0.7, low=50, high=120), backbone))
    assert torch.equal(found, expected)
    assert not torch.allclose(found, predicted(backbone), atol=1e-3)


def test_several_add_up(backbone: Backbone) -> None:
    """Diffusers' MultiControlNetModel adds their residuals."""
    first = ControlNet(spec(scale=0.7), backbone)
    second = ControlNet(spec(scale=0.4, low=20, high=60), backbone)
    stock = diffusers.ControlNetModel.from_pretrained(CANNY).eval()
    both: Any = diffusers.MultiControlNetModel([stock, stock])
    call = inputs(backbone)
    with torch.no_grad():
        down, mid = both(
            **call,
            controlnet_cond=[canny(PICTURES, 100, 200), canny(PICTURES, 20, 60)],
            conditioning_scale=[0.7, 0.4],
            return_dict=False,
        )
        expected = backbone.network(
            **call, down_block_additional_residuals=down, mid_block_additional_residual=mid
        ).sample
    assert torch.allclose(predicted(backbone, first, second), expected, atol=1e-6)


def test_one_network_serves_techniques_that_differ_in_scale(backbone: Backbone) -> None:
    """A ControlNet is as large as half a UNet."""
    before = len(backbone.extras)
    ControlNet(spec(scale=0.1), backbone), ControlNet(spec(scale=0.2), backbone)
    assert len(backbone.extras) <= max(1, before)


def test_edges_have_three_equal_channels_of_0_and_1() -> None:
    edges = canny(PICTURES, 100, 200)
    assert edges.shape == (2, 3, 64, 64) and set(edges.unique().tolist()) == {0.0, 1.0}
    assert torch.equal(edges[:, 0], edges[:, 2])


def test_the_border_of_padding_is_no_edge() -> None:
    """A picture on grey has a frame that every ControlNet would follow."""
    padded = np.full((2, 3, 64, 64), 127, np.uint8)
    padded[:, :, 8:56, 4:60] = PICTURES.pixels[:, :, 8:56, 4:60]
    boxes = np.array([[8, 4, 48, 56], [0, 0, 64, 64]], np.int32)
    inside, framed = canny(Pictures(padded, boxes), 100, 200)
    assert framed[:, 6:10].any() and framed[:, :, 2:6].any()
    frame = torch.ones_like(inside, dtype=torch.bool)
    frame[:, 9:55, 5:59] = False
    assert not inside[frame].any() and torch.equal(
        inside[~frame], canny(Pictures(padded, WHOLE), 100, 200)[0][~frame]
    )
    tile = Pictures(padded[:, :, :32, :32], boxes - np.array([-4, 0, 0, 0], np.int32))
    assert not canny(tile, 100, 200)[0, :, :13].any()


def test_a_field_of_the_sample_is_the_control_image(backbone: Backbone) -> None:
    depth = np.stack([pixels(64, 64, seed).transpose(2, 0, 1) for seed in (5, 6)])
    technique = ControlNet(spec(image="field:depth.png"), backbone)
    seen = technique.look(Pictures(PICTURES.pixels, WHOLE, {"depth.png": depth}))
    assert torch.equal(seen, torch.from_numpy(depth).float() / 255)


def negative(images: np.ndarray) -> Tensor:
    """A control image that a user computes."""
    return 1 - torch.from_numpy(images).float() / 255


def half_size(images: np.ndarray) -> Tensor:
    """One of a wrong shape."""
    return negative(images)[..., ::2]


def test_a_callable_computes_the_control_image(backbone: Backbone) -> None:
    technique = ControlNet(spec(image=f"call:{__name__}:negative"), backbone)
    assert torch.equal(technique.look(PICTURES), negative(PICTURES.pixels))
    wrong = ControlNet(spec(image=f"call:{__name__}:half_size"), backbone)
    with pytest.raises(
        ValueError, match=r"half_size' gave float32 \[2, 3, 64, 32\] from 0 to .*for pixels \[2, 3, "
    ):
        wrong.look(PICTURES)


def loud(images: np.ndarray) -> np.ndarray:
    """A control image of bytes."""
    return images


def greedy(images: np.ndarray) -> Tensor:
    """One that writes where it should read."""
    images[:] = 0
    return negative(images)


def broken(images: np.ndarray) -> Tensor:
    raise RuntimeError("out of luck")


def test_a_callable_is_not_trusted(backbone: Backbone) -> None:
    """Bytes were taken for values up to 255, and what it wrote into its argument was every group's picture."""
    before = PICTURES.pixels.copy()
    ControlNet(spec(image=f"call:{__name__}:greedy"), backbone).look(PICTURES)
    assert np.array_equal(PICTURES.pixels, before)
    with pytest.raises(
        ValueError, match=r"loud' gave uint8 \[2, 3, 64, 64\] from .*; control images are floats"
    ):
        ControlNet(spec(image=f"call:{__name__}:loud"), backbone).look(PICTURES)
    with pytest.raises(ValueError, match="broken' failed: RuntimeError: out of luck"):
        ControlNet(spec(image=f"call:{__name__}:broken"), backbone).look(PICTURES)


@torch.no_grad()
def decorated(images: np.ndarray) -> Tensor:
    """Its code seems to lie in torch."""
    return negative(images)


def test_check_hashes_all_that_values_depend_on() -> None:
    files = ControlNet.check(spec(image=f"call:{__name__}:negative"), StableDiffusion, TINY)
    weights = (CANNY / "diffusion_pytorch_model.safetensors").read_bytes()
    assert files["controlnet/diffusion_pytorch_model.safetensors"] == hashlib.sha256(weights).hexdigest()
    assert files["controlnet/config.json"]
    own = Path(__file__).read_bytes()
    assert files[f"call:{__name__}:negative"] == hashlib.sha256(own).hexdigest()
    wrapped = ControlNet.check(spec(image=f"call:{__name__}:decorated"), StableDiffusion, TINY)
    assert wrapped[f"call:{__name__}:decorated"] == hashlib.sha256(own).hexdigest()


@pytest.mark.parametrize(
    ("image", "message"),
    [
        ("call:no.such.module:f", "No module named 'no'"),
        (f"call:{__name__}:no_such", "has no attribute 'no_such'"),
        (f"call:{__name__}:TINY", "is a PosixPath, and must be a function"),
        ("call:sys:exit", "the module has no file"),
    ],
)
def test_a_callable_that_is_not_there(image: str, message: str) -> None:
    with pytest.raises(ValueError, match=f"controlnet.image '{image}': .*{message}"):
        ControlNet.check(spec(image=image), StableDiffusion, TINY)


def test_what_does_not_fit_is_refused_before_work(tmp_path: Path) -> None:
    other = tmp_path / "other"
    shutil.copytree(CANNY, other)
    config = json.loads((other / "config.json").read_text())
    (other / "config.json").write_text(json.dumps(config | {"cross_attention_dim": 2048}))
    with pytest.raises(
        ValueError,
        match="other' does not fit the backbone: its cross_attention_dim is 2048, the UNet's is 32",
    ):
        ControlNet.check(spec(source=str(other)), StableDiffusion, TINY)
    (other / "config.json").write_text(json.dumps(config | {"conditioning_channels": 1}))
    with pytest.raises(ValueError, match="other' takes 1 channels, reduced 8 times; control images have 3"):
        ControlNet.check(spec(source=str(other)), StableDiffusion, TINY)
    (other / "config.json").write_text(json.dumps(config | {"_class_name": "T2IAdapter"}))
    with pytest.raises(ValueError, match="other' is a T2IAdapter; a ControlNetModel is needed"):
        ControlNet.check(spec(source=str(other)), StableDiffusion, TINY)
    with pytest.raises(ValueError, match=r"controlnet.*nowhere"):
        ControlNet.check(spec(source=str(tmp_path / "nowhere")), StableDiffusion, TINY)


def test_only_unets_have_them() -> None:
    class Transformer(StableDiffusion):
        network_class = diffusers.PixArtTransformer2DModel

    with pytest.raises(ValueError, match="supported for UNets, and this backbone's network is a PixArtTrans"):
        ControlNet.check(spec(), Transformer, TINY)
