"""Repainting beside the stock pipelines, and what it owes to an image, a candidate and a spec."""

from __future__ import annotations

import io
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from diffusers import StableDiffusionControlNetImg2ImgPipeline, StableDiffusionImg2ImgPipeline
from numpy.typing import NDArray
from PIL import Image

from pipeline import families, noise
from pipeline.backbone import Backbone
from pipeline.batch import Batch
from pipeline.embedded_figures import edges
from pipeline.embedded_figures.pipelines import controlled, text_to_image
from pipeline.embedded_figures.scenes import read_scenes
from pipeline.gate import img2img
from pipeline.gate.candidates import plain
from pipeline.gate.img2img import Repainter, batch_of, left_out, repaint
from pipeline.gate.sampling import Drawn
from pipeline.gate.similarity import edge_agreement, ssim
from pipeline.generation import Decoder, ddim
from pipeline.techniques.base import Pictures
from pipeline.techniques.controlnet import canny
from schemas.gate import Candidate, GateSpec
from tests import engines, loras
from tests.backbones import tiny
from tests.controls import write_controlnet
from tests.pictures import of_pictures
from tests.tars import pixels

torch.set_num_threads(1)
IDS = [("a.tar", "0"), ("a.tar", "1")]
SEED = 3


def spec_of(source: str | Path, *, side: int = 64, **fields: Any) -> GateSpec:
    """Of Img2Img in three steps unless `fields` has other settings."""
    document: dict[str, Any] = {
        "version": 1,
        "out": "unused",
        "input": {"shards": "embedded"},
        "image_size": [side, side],
        "backbone": {"source": str(source), "batch_size": 2},
        "seed": SEED,
        "prompt": "a duck",
        "cluster": {"device": "cpu"},
        **fields,
    }
    document["img2img"] = {"steps": 4, "strength": 0.75} | fields.get("img2img", {})
    return GateSpec.model_validate(document)


def candidate(*techniques: dict[str, Any], prompt: str | None = None) -> Candidate:
    return Candidate.model_validate({"name": "any", "prompt": prompt, "techniques": list(techniques)})


def batch(count: int = 2, side: int = 64) -> Batch:
    images = np.stack([pixels(side, side, seed).transpose(2, 0, 1) for seed in range(count)])
    captions: list[str | None] = [f"picture {place}" for place in range(count)]
    return of_pictures([("a.tar", str(place)) for place in range(count)], images, caption=captions)


def load(folder: Path) -> Backbone:
    return families.load(folder, dtype=torch.float32, device="cpu")


@pytest.fixture(scope="module")
def sd1() -> Backbone:
    return load(tiny("sd1"))


@pytest.fixture(scope="module")
def control(tmp_path_factory: pytest.TempPathFactory) -> str:
    return write_controlnet(tmp_path_factory.mktemp("control"), tiny("sd1"))


def latents_of(backbone: Backbone, images: Batch) -> torch.Tensor:
    return backbone.scale_latents(backbone.encode_images(torch.from_numpy(images.pixels))[0])


def near(found: NDArray[np.uint8], expected: NDArray[Any], most: float = 1) -> bool:
    return bool(np.abs(found.astype(int) - expected.astype(int)).max() <= most)


def stock(pipe: Any, backbone: Backbone, images: Batch, **options: Any) -> NDArray[np.uint8]:
    """By a pipeline of diffusers, from the same latents; its noise must be patched to be ours."""
    made = pipe(
        image=latents_of(backbone, images),
        num_inference_steps=4,
        strength=0.75,
        output_type="np",
        **options,
    )
    return np.rint(made.images * 255).astype(np.uint8)


def ours(shape: tuple[int, ...], *_: Any, **__: Any) -> torch.Tensor:
    draws = [
        noise.normal(shape[1:], seed=SEED, group_seed=0, purpose="noise", shard=shard, key=key)
        for shard, key in IDS
    ]
    return torch.from_numpy(np.stack(draws))


@pytest.mark.parametrize("name", ["sd1", "sd2-v"])
def test_as_the_stock_pipeline(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Plain, and with a prompt and a guidance of the candidate's own."""
    monkeypatch.setattr(sys.modules[StableDiffusionImg2ImgPipeline.__module__], "randn_tensor", ours)
    backbone, images = load(tiny(name)), batch()
    pipe: Any = StableDiffusionImg2ImgPipeline(
        **text_to_image(tiny(name)).components, requires_safety_checker=False
    )
    repainter = Repainter(backbone, spec_of(tiny(name)))
    found = repainter(plain(), images)
    assert found.shape == (2, 64, 64, 3) and found.dtype == np.uint8
    assert near(found, stock(pipe, backbone, images, prompt=["a duck"] * 2, guidance_scale=3.0))
    own = {"type": "guidance", "scale": 8.0, "negative_prompt": "blurry"}
    guided = repainter(candidate(own, prompt="{caption}"), images)
    prompts = {"prompt": ["picture 0", "picture 1"], "negative_prompt": ["blurry"] * 2}
    assert near(guided, stock(pipe, backbone, images, guidance_scale=8.0, **prompts))
    assert not near(guided, found, 3)


def test_a_controlnet_as_in_the_stock_pipeline(
    sd1: Backbone, control: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """In both passes of guidance, at every step."""
    module = sys.modules[StableDiffusionControlNetImg2ImgPipeline.__module__]
    monkeypatch.setattr(module, "randn_tensor", ours)
    images = batch()
    parts = controlled(text_to_image(tiny("sd1")), Path(control)).components
    pipe: Any = StableDiffusionControlNetImg2ImgPipeline(**parts, requires_safety_checker=False)
    steered = candidate({"type": "controlnet", "source": control, "low": 20, "high": 40, "scale": 3.0})
    found = Repainter(sd1, spec_of(tiny("sd1")))(steered, images)
    expected = stock(
        pipe,
        sd1,
        images,
        prompt=["a duck"] * 2,
        guidance_scale=3.0,
        control_image=canny(Pictures(images.pixels, images.boxes), 20, 40),
        controlnet_conditioning_scale=3.0,
    )
    assert near(found, expected)
    assert not near(found, Repainter(sd1, spec_of(tiny("sd1")))(plain(), images), 3)


def scenes_with_edges(count: int) -> Batch:
    scenes = edges.with_edges(read_scenes("embedded", 20), count)
    images = np.stack([scene.pixels.transpose(2, 0, 1) for scene in scenes])
    return of_pictures([scene.id for scene in scenes], images)


def test_hardly_any_strength_leaves_what_the_vae_keeps() -> None:
    """One step, the last."""
    backbone, images = engines.backbone(), scenes_with_edges(2)
    repainter = Repainter(backbone, spec_of("embedded", side=128, img2img={"strength": 0.01}))
    found, kept = repainter(plain(), images), Decoder(backbone)(latents_of(backbone, images))
    assert np.abs(found.astype(int) - kept.astype(int)).mean() < 2
    strong = Repainter(backbone, spec_of("embedded", side=128))(plain(), images)
    inputs = images.pixels.transpose(0, 2, 3, 1)
    assert np.all(ssim(inputs, found) > ssim(inputs, strong) + 0.05)


def test_a_controlnet_brings_edges_closer() -> None:
    """The guideline at work, with what ships: the point of it all."""
    images = scenes_with_edges(3)
    spec = spec_of("embedded", side=128, backbone={"batch_size": 3}, prompt="a photo")
    repainter, inputs = Repainter(engines.backbone(), spec), images.pixels.transpose(0, 2, 3, 1)
    steered = candidate({"type": "controlnet", "source": "embedded/controlnet-canny"})
    without, found = (edge_agreement(inputs, repainter(one, images)) for one in (plain(), steered))
    assert np.mean(found - without) > 0.05


def test_the_same_bytes_whatever_came_before(sd1: Backbone, control: str, tmp_path: Path) -> None:
    repainter, images = Repainter(sd1, spec_of(tiny("sd1"))), batch()
    file = str(loras.write_kohya(tmp_path / "any.safetensors", sd1.network))
    steered = candidate({"type": "controlnet", "source": control}, {"type": "lora", "source": file})
    first = [repainter(one, images) for one in (plain(), steered)]
    again = [Repainter(load(tiny("sd1")), spec_of(tiny("sd1")))(one, images) for one in (steered, plain())]
    assert np.array_equal(first[0], repainter(plain(), images))
    assert np.array_equal(first[0], again[1]) and np.array_equal(first[1], again[0])


def test_noise_is_an_images_own(sd1: Backbone) -> None:
    """By its id and the seed, not by its slot; the last pass of fewer images than a batch is padded."""
    images, repainter = batch(3), Repainter(sd1, spec_of(tiny("sd1")))
    found = repainter(plain(), images)
    turned = repainter(plain(), images.pick([2, 1, 0]))
    assert found.shape == (3, 64, 64, 3) and near(turned[::-1], found)
    other = images.pick([0, 1, 2])
    other.ids = [("b.tar", sample[1]) for sample in images.ids if sample]
    assert not near(repainter(plain(), other), found, 3)
    assert not near(Repainter(sd1, spec_of(tiny("sd1"), seed=4))(plain(), images), found, 3)


def test_a_lora_acts_and_leaves_no_trace(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nor where a pass fails."""
    backbone, images = load(tiny("sd1")), batch()
    before = {name: value.clone() for name, value in backbone.network.state_dict().items()}
    file = str(loras.write_kohya(tmp_path / "any.safetensors", backbone.network))
    repainter = Repainter(backbone, spec_of(tiny("sd1")))
    steered = candidate({"type": "lora", "source": file, "scale": 20.0})
    assert not near(repainter(steered, images), repainter(plain(), images), 3)

    def fails(*_: Any) -> None:
        changed = [
            name for name, value in backbone.network.state_dict().items() if value.ne(before[name]).any()
        ]
        raise RuntimeError(f"{len(changed)} changed")

    monkeypatch.setattr(backbone, "predict", fails)
    with pytest.raises(RuntimeError, match=r"^1 changed"):
        repainter(steered, images)
    after = backbone.network.state_dict()
    assert all(torch.equal(after[name], value) for name, value in before.items())


def test_a_candidates_guidance_takes_the_place_of_the_settings(sd1: Backbone) -> None:
    images = batch()

    def painted(guidance: float, *techniques: dict[str, Any]) -> NDArray[np.uint8]:
        spec = spec_of(tiny("sd1"), img2img={"guidance": guidance})
        return Repainter(sd1, spec)(candidate(*techniques), images)

    own = painted(3.0, {"type": "guidance", "scale": 7.0})
    assert np.array_equal(own, painted(7.0)) and not near(own, painted(3.0))
    assert near(painted(1.0), painted(3.0, {"type": "guidance", "scale": 1.0}))


def test_without_guidance_there_is_one_pass_a_step(sd1: Backbone, monkeypatch: pytest.MonkeyPatch) -> None:
    times, predict = [], sd1.predict

    def noted(inputs: dict[str, Any]) -> torch.Tensor:
        times.append(int(inputs["timestep"]))
        return predict(inputs)

    monkeypatch.setattr(sd1, "predict", noted)
    Repainter(sd1, spec_of(tiny("sd1"), img2img={"guidance": 1.0}))(plain(), batch())
    assert times == [501, 251, 1]
    times.clear()
    Repainter(sd1, spec_of(tiny("sd1")))(plain(), batch())
    assert times == [501, 501, 251, 251, 1, 1]


@pytest.mark.parametrize(
    "technique",
    [
        {"type": "denoise", "start": 60},
        {"type": "inversion"},
        {"type": "no-noise"},
        {"type": "average", "seeds": 2},
    ],
)
def test_what_concerns_a_features_start_is_left_out(sd1: Backbone, technique: dict[str, Any]) -> None:
    one, spec = candidate({"type": "guidance", "scale": 2.0}, technique), spec_of(tiny("sd1"))
    assert left_out(plain()) is None and left_out(candidate({"type": "guidance", "scale": 2.0})) is None
    assert (left_out(one) or "").startswith(f"'{technique['type']}' concerns the noise that a feature starts")
    assert repaint(spec, one, Drawn(IDS, [], {}, {})) is None
    with pytest.raises(ValueError, match=f"candidate 'any': '{technique['type']}' concerns the noise"):
        Repainter(sd1, spec)(one, batch())


@pytest.mark.parametrize("name", ["sdxl", "playground", "pixart-alpha", "pixart-sigma", "hunyuan", "if"])
def test_other_families(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Pixels, learned variances, sizes and masks; a network that knows the noise brings back what the VAE keeps."""
    backbone, images = load(tiny(name)), batch()
    img2img.check(tiny(name))
    repainter = Repainter(backbone, spec_of(tiny(name)))
    found = repainter(plain(), images)
    assert found.shape == (2, 64, 64, 3) and found.dtype == np.uint8
    latents = latents_of(backbone, images)
    drawn, scheduler = ours(tuple(latents.shape)), ddim(backbone.folder)

    def knows(inputs: dict[str, Any]) -> torch.Tensor:
        if scheduler.config.prediction_type == "epsilon":
            return drawn
        velocity: torch.Tensor = scheduler.get_velocity(latents, drawn, inputs["timestep"].long())
        return velocity

    monkeypatch.setattr(backbone, "predict", knows)
    assert near(repainter(plain(), images), Decoder(backbone)(latents))
    assert not near(found, Decoder(backbone)(latents), 3)


@pytest.mark.parametrize(
    ("name", "pipeline"), [("sd3", "StableDiffusion3Pipeline"), ("flux", "FluxPipeline")]
)
def test_flow_matching_is_refused(name: str, pipeline: str) -> None:
    message = f"img2img: the backbone is a {pipeline}, a network of flow matching, .*; set img2img: null"
    with pytest.raises(ValueError, match=message):
        img2img.check(tiny(name))
    with pytest.raises(ValueError, match=message):
        Repainter(load(tiny(name)), spec_of(tiny(name)))


def test_values_that_are_not_finite(sd1: Backbone, tmp_path: Path) -> None:
    """They would be decoded to black."""
    file = str(loras.write_kohya(tmp_path / "any.safetensors", sd1.network))
    overflows = candidate({"type": "lora", "source": file, "scale": 1e38})
    with pytest.raises(
        ValueError, match="candidate 'any' the network's values are not finite in float32; choose"
    ):
        Repainter(sd1, spec_of(tiny("sd1")))(overflows, batch())


def encoded(pixels: NDArray[np.uint8]) -> bytes:
    buffer = io.BytesIO()
    Image.fromarray(pixels).save(buffer, "PNG")
    return buffer.getvalue()


def drawn(count: int, control: Callable[[int], bytes]) -> Drawn:
    return Drawn(
        ids=[("a.tar", str(place)) for place in range(count)],
        images=[encoded(pixels(64, 64, place)) for place in range(count)],
        texts={"caption": [f"picture {place}" for place in range(count)], "json:kind": ["duck", "", "tree"]},
        controls={"edge.png": [control(place) for place in range(count)]},
    )


def test_drawn_images(control: str) -> None:
    """As many as the settings say, with their texts and control images; what is empty stays empty."""
    sample = drawn(3, lambda place: encoded(pixels(128, 128, 10 + place)))
    steered = candidate(
        {"type": "controlnet", "source": control, "image": "field:edge.png", "scale": 3.0},
        prompt="{caption} of a {json:kind}",
    )
    spec = spec_of(tiny("sd1"), img2img={"images": 2}, candidates=[steered.model_dump()])
    inputs = batch_of(spec, sample)
    assert inputs.ids == IDS and np.array_equal(inputs.pixels, batch().pixels)
    assert inputs.fields["edge.png"].shape == (2, 3, 64, 64)
    found = repaint(spec, steered, sample)
    assert found is not None and found.shape == (2, 64, 64, 3)
    assert np.array_equal(found, Repainter(load(tiny("sd1")), spec)(steered, inputs))
    white = drawn(3, lambda place: encoded(np.full((64, 64, 3), 255, np.uint8)))
    other = repaint(spec, steered, white)
    assert other is not None and not np.array_equal(found, other)


def test_steps_of_ddim_meet(tmp_path: Path) -> None:
    """With linspace, times lay further apart than steps are long: the network was told less noise than there was."""
    folder = engines.copy_backbone(tmp_path / "linspace", timestep_spacing="linspace")
    scheduler = ddim(folder)
    scheduler.set_timesteps(7)
    assert set(np.diff(scheduler.timesteps.tolist())) == {-(1000 // 7)}
    assert scheduler.config.clip_sample is False and scheduler.config.prediction_type == "v_prediction"
