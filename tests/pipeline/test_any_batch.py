"""The promise of every store, for random specs: a row depends on its sample and the spec, and on nothing else.

Any family, techniques, taps, geometry, dtype and batch size: the same bytes alone, in company and on another actor.
A job gives a sample its slot; in another one, or in batches of another size, its row is equal within the stated bound.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest
import torch
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from pipeline import checkpoint, families, sources
from pipeline.batch import Batch
from pipeline.features import Engine, Features
from pipeline.layouts import layouts
from schemas import taps as vocabulary
from schemas.spec import Backbone, ExtractSpec
from tests import backbones
from tests.controls import write_controlnet
from tests.loras import write_kohya
from tests.pictures import of_pictures
from tests.tars import pixels

SIDE = 64
BOUNDS = {"float32": 1e-5, "bfloat16": 1e-1}
"""Of rows in other slots and at another batch size, as schemas/README.md states them."""
UNETS = ("sd1", "sd2-v", "sdxl")
FAMILIES = (*UNETS, "pixart-sigma", "sd3", "flux", "hunyuan", "if")


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With a backbone of every family, and a ControlNet and a LoRA for each UNet, as they are asked for."""
    return tmp_path_factory.mktemp("any-batch")


@functools.cache
def backbone(folder: Path, family: str) -> Path:
    return backbones.make(family, folder / family)


@functools.cache
def controlnet(folder: Path, family: str) -> str:
    return write_controlnet(folder / f"{family}-controlnet", backbone(folder, family))


@functools.cache
def lora(folder: Path, family: str) -> str:
    network: Any = diffusers.UNet2DConditionModel.from_pretrained(backbone(folder, family), subfolder="unet")
    return str(write_kohya(folder / f"{family}-lora.safetensors", network))


@st.composite
def techniques(draw: st.DrawFn, folder: Path, family: str) -> list[dict[str, Any]]:
    """Any that may come together."""
    chosen: list[dict[str, Any]] = []
    start = draw(st.sampled_from([None, "denoise", "inversion", "no-noise"]))
    if start is not None:
        fields = {"denoise": {"start": 53}, "inversion": {"steps": 2}}.get(start, {})
        chosen.append({"type": start, **fields})
    if start in (None, "denoise") and draw(st.booleans()):
        chosen.append({"type": "average", "seeds": 2})
    if draw(st.booleans()):
        chosen.append({"type": "guidance", "scale": 2.0, "negative_prompt": "blurry"})
    if family in UNETS and draw(st.booleans()):
        chosen.append({"type": "controlnet", "source": controlnet(folder, family), "scale": 0.5})
    if family in UNETS and draw(st.booleans()):
        chosen.append({"type": "lora", "source": lora(folder, family), "scale": 0.5})
    return draw(st.permutations(chosen))


@st.composite
def specs(draw: st.DrawFn, folder: Path) -> ExtractSpec:
    family = draw(st.sampled_from(FAMILIES))
    found = sources.locate(Backbone(source=str(backbone(folder, family))))
    part = families.family(found).network_part
    known = vocabulary.names(checkpoint.config(found, part))
    groups = [
        {
            "name": f"g{number}",
            "prompt": draw(st.sampled_from(["", "a photo of a duck", "{caption}, sharp"])),
            "t": 50,
            "seed": draw(st.integers(0, 1)),
            "latents": draw(st.sampled_from(["sample", "mean"])),
            "flip": draw(st.booleans()),
            "taps": [
                {"name": tap, "dtype": "float32"}
                for tap in draw(st.lists(st.sampled_from(known), min_size=1, max_size=2, unique=True))
            ],
            "per_image_attention": True,
            "techniques": draw(techniques(folder, family)),
        }
        for number in range(draw(st.integers(1, 2)))
    ]
    return ExtractSpec.model_validate(
        {
            "version": 1,
            "store": "unused",
            "input": {"shards": "unused"},
            "image_size": [SIDE, SIDE],
            "fit": draw(st.sampled_from(["stretch", "pad"])),
            "backbone": {
                "source": str(found),
                "batch_size": 3,
                "dtype": draw(st.sampled_from(list(BOUNDS))),
            },
            "groups": groups,
            "output": {"scores": draw(st.sampled_from([None, {}]))},
        }
    )


def actor(spec: ExtractSpec) -> Engine:
    """A new one, with weights of its own."""
    folder = sources.locate(spec.backbone)
    loaded = families.load(folder, dtype=getattr(torch, spec.backbone.dtype), device="cpu")
    return Engine(loaded, spec, layouts(spec, folder))


def batch(keys: Sequence[str | None]) -> Batch:
    images = np.zeros((len(keys), 3, SIDE, SIDE), np.uint8)
    for slot, key in enumerate(keys):
        if key is not None:
            images[slot] = pixels(SIDE, SIDE, seed=sum(key.encode())).transpose(2, 0, 1)
    captions = [None if key is None else f"a picture of {key}" for key in keys]
    made = of_pictures([None if key is None else ("a.tar", key) for key in keys], images, caption=captions)
    made.boxes[:] = [0, 8, SIDE, SIDE - 16]
    return made


def row(features: Features, slot: int) -> dict[tuple[str, str], np.ndarray]:
    pooled = {(group, f"{tap} pooled"): values[slot] for (group, tap), values in features.pooled.items()}
    return {key: values[slot] for key, values in features.maps.items()} | pooled


@pytest.mark.slow
@settings(max_examples=12, deadline=None, suppress_health_check=list(HealthCheck), print_blob=True)
@given(data=st.data())
def test_a_row_is_the_same_in_any_batch(folder: Path, data: st.DataObject) -> None:
    spec = data.draw(specs(folder))
    here, there = actor(spec), actor(spec)
    slot = data.draw(st.integers(0, 2))
    first = here.run(batch([*[None] * slot, "a", *[None] * (2 - slot)]))
    alone = row(first, slot)
    company = data.draw(st.permutations(["b", "c"]))
    company.insert(slot, "a")
    here.run(batch(["d", "e", "f"]))  # nothing of it must stay
    for engine in (here, there):
        features = engine.run(batch(company))
        found = row(features, slot)
        assert found.keys() == alone.keys() and features.scores.keys() == first.scores.keys()
        for group, values in first.scores.items():
            assert values[slot].tobytes() == features.scores[group][slot].tobytes(), group
        for key, value in alone.items():
            assert value.tobytes() == found[key].tobytes(), key
    moved = row(there.run(batch(company[1:] + company[:1])), (slot - 1) % 3)
    other_size = row(there.run(batch(["b", "a"])), 1)
    bound = BOUNDS[spec.backbone.dtype]
    for key, value in alone.items():
        for other in (moved, other_size):
            difference = np.linalg.norm(other[key].astype(np.float64) - value)
            assert difference <= bound * np.linalg.norm(value.astype(np.float64)), key
