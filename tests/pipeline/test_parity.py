"""End to end beside the reference: from a picture, a prompt and the reference's own first noisy latents to every tap.

The noise itself is the one thing given, since the reference draws it from a global generator.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from PIL import Image
from safetensors.torch import load_file
from torch import Tensor

from pipeline import families, sources
from pipeline.decode import decode
from pipeline.features import Engine
from pipeline.layouts import layouts
from pipeline.noising import Diffusion
from schemas import taps as vocabulary
from tests.engines import make_spec
from tests.pictures import of_pictures

GOLDEN = Path(__file__).parents[1] / "data" / "golden"
PROMPT = "a photo of a duck and a tree, high quality"
TOLERANCE = 5e-6
CANNY = {"type": "controlnet", "source": str(GOLDEN / "controlnet-canny-tiny")}


class Given(Diffusion):
    """A schedule whose noised latents are those that the reference started from."""

    def __init__(self, scheduler: Any, first: Tensor) -> None:
        super().__init__(scheduler)
        self.first = first

    def add_noise(self, latents: Tensor, noise: Tensor, timestep: int) -> Tensor:
        return self.first

    def scale(self, noisy: Tensor, timestep: int) -> Tensor:
        return noisy  # what the reference kept is scaled


@pytest.mark.parametrize(
    ("file", "model", "techniques"),
    [
        ("dev.sd15.all", "sd15-tiny", []),
        ("dev.sd15.attn", "sd15-tiny", []),
        ("dev.sd15.canny", "sd15-tiny", [CANNY]),
        ("dev.sd15.canny-denoise60", "sd15-tiny", [CANNY, {"type": "denoise", "start": 60}]),
        ("dev.sdxl.all", "sdxl-tiny", []),
    ],
)
def test_every_tap(file: str, model: str, techniques: list[dict[str, Any]]) -> None:
    stored = load_file(GOLDEN / f"{file}.safetensors")
    wanted = {tap: value for tap, value in stored.items() if not tap.startswith("__")}
    group = {
        "name": "g",
        "prompt": PROMPT,
        "t": 50,
        "taps": [{"name": tap, "dtype": "float32"} for tap in wanted],
        "techniques": techniques,
    }
    spec = make_spec(group, image_size=[64, 64], backbone={"source": str(GOLDEN / model), "batch_size": 1})
    folder = sources.locate(spec.backbone)
    backbone = families.load(folder, dtype=torch.float32, device="cpu")
    backbone.schedule = Given(backbone.schedule._scheduler, stored["__first_input"])
    picture = decode((GOLDEN / "dev.png").read_bytes(), (64, 64), 10**6, "stretch")
    batch = of_pictures([("a.tar", "dev")], picture.pixels[None])

    features = Engine(backbone, spec, layouts(spec, folder)).run(batch)

    config = backbone.network.config
    assert list(dict.fromkeys(tap for _, tap in features.maps)) == vocabulary.resolve(list(wanted), config)
    worst = {}
    for tap, value in wanted.items():
        found = torch.from_numpy(features.maps["g", tap])
        assert found.shape == value.shape
        worst[tap] = float((found - value).norm() / value.norm())
    assert max(worst.values()) < TOLERANCE, max(worst, key=worst.__getitem__)
    if techniques:
        plain = load_file(GOLDEN / "dev.sd15.attn.safetensors")
        assert (plain["up-level0-upsampler-out"] - wanted["up-level0-upsampler-out"]).abs().max() > 1e-3


def test_the_picture_is_the_reference_s() -> None:
    """Stretched with PIL's bicubic filter; another one moves edges, and so ControlNet's features."""
    ours = decode((GOLDEN / "dev.png").read_bytes(), (64, 64), 10**6, "stretch").pixels
    picture = Image.open(GOLDEN / "dev.png").convert("RGB").resize((64, 64), Image.Resampling.BICUBIC)
    assert np.array_equal(ours.transpose(1, 2, 0), np.asarray(picture))


def test_prompts_and_posteriors_are_the_reference_s() -> None:
    """The text that the reference gave its UNet, and SDXL's pooled text besides."""
    for file, model in (("dev.sd15.all", "sd15-tiny"), ("dev.sdxl.all", "sdxl-tiny")):
        stored = load_file(GOLDEN / f"{file}.safetensors")
        loaded = families.load(GOLDEN / model, dtype=torch.float32, device="cpu")
        text = loaded.encode_text([PROMPT])
        for ours, theirs in (("prompt_embeds", "__prompt_embeds"), ("pooled_prompt_embeds", "__pooled")):
            if theirs in stored:
                assert float((text[ours] - stored[theirs]).norm() / stored[theirs].norm()) < TOLERANCE
