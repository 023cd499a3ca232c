"""Whole jobs with techniques: every kind at once, on Ray and serially, and samples that lack what one group needs."""

from __future__ import annotations

import functools
import json
import shutil
from pathlib import Path
from typing import Any

import diffusers
import numpy as np
import pytest

from jobs import endings, extract
from pipeline import FeatureExtractor, FeatureStore, embedded
from pipeline.identity import IdentityError
from schemas.spec import ExtractSpec
from tests.controls import write_controlnet
from tests.faults.harness import contents
from tests.loras import write_kohya
from tests.tars import jpeg, make_tar, png

TAP = "up-level1-upsampler-out"


@pytest.fixture(scope="module")
def weights(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A folder with a ControlNet and a LoRA for the embedded backbone."""
    folder = tmp_path_factory.mktemp("weights")
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(embedded.BACKBONE, subfolder="unet")
    write_controlnet(folder / "canny")
    write_kohya(folder / "a.safetensors", unet)
    return folder


def write_shards(folder: Path) -> str:
    """Two shards of five pictures with depth maps and json, but for: 1 without depth, 2 without json, 3 with a depth
    map that is no picture."""
    folder.mkdir()
    for shard in range(2):
        members = []
        for number in range(5):
            members.append((f"{number}.jpg", jpeg(40, 60, seed=10 * shard + number)))
            if number != 1:
                members.append((f"{number}.depth.png", b"none" if number == 3 else png(40, 60, seed=number)))
            if number != 2:
                members.append((f"{number}.json", json.dumps({"place": f"shore {number}"}).encode()))
        make_tar(folder / f"{shard}.tar", members)
    return f"{folder}/*.tar"


def spec_of(store: Path, shards: str, weights: Path, **changes: Any) -> ExtractSpec:
    depth = {"type": "controlnet", "source": str(weights / "canny"), "image": "field:depth.png"}
    lora = {"type": "lora", "source": str(weights / "a.safetensors"), "scale": 0.5}
    canny = {"type": "controlnet", "source": str(weights / "canny"), "scale": 0.5}
    group: Any = functools.partial(dict, taps=TAP, prompt="a photo", t=50)
    document: dict[str, Any] = {
        "version": 1,
        "store": str(store),
        "input": {"shards": shards, "caption_field": None},
        "image_size": [64, 64],
        "fit": "pad",
        "backbone": {"batch_size": 2},
        "groups": [
            group(name="plain", t=[50, 100], flip=True),
            group(name="depth", techniques=[depth]),
            group(name="place", prompt="a photo of the {json:place}"),
            group(name="all", techniques=[canny, lora, {"type": "denoise", "start": 53}], taps=[TAP, "attn"]),
            group(name="lora", techniques=[lora, {"type": "average", "seeds": 2}]),
        ],
        "max_bad_fraction": 1.0,
        "cluster": {"device": "cpu", "actors": 2},
    }
    return ExtractSpec.model_validate(document | changes)


@pytest.mark.ray
@pytest.mark.slow
def test_a_job_with_everything(tmp_path: Path, weights: Path) -> None:
    shards = write_shards(tmp_path / "shards")
    spec = spec_of(tmp_path / "serial", shards, weights)
    assert extract.run(spec, serial=True) == endings.DONE
    store = FeatureStore(spec.store)
    lines = {(line["shard"], line["key"]): line for line in store.index.to_pylist()}
    groups = ("plain-t50", "plain-t100", "depth", "place", "all", "lora")
    for (_, key), line in lines.items():
        found = {group: line["groups"][group]["reason"] for group in groups}
        expected = {
            "1": {"depth": "no-field"},
            "2": {"place": "no-json-field"},
            "3": {"depth": "undecodable-field"},
        }
        assert found == dict.fromkeys(groups) | expected.get(key, {})
        assert line["status"] == ("partial" if key in expected else "ok")
        assert line["box"] == {"top": 10, "left": 0, "height": 43, "width": 64}
    assert sorted(store.taps) == sorted([*(f"{group}/{TAP}" for group in groups), "all/attn"])

    on_ray = spec_of(tmp_path / "ray", shards, weights)
    assert extract.run(on_ray) == endings.DONE
    assert contents(on_ray.store) == contents(spec.store)

    extractor = FeatureExtractor.from_store(spec.store)
    picture = jpeg(40, 60, seed=10)
    again = extractor(
        [picture],
        ids=[("1.tar", "0")],
        json={"place": ["shore 0"]},
        fields={"depth.png": [png(40, 60, seed=0)]},
    )
    stored = store.read([lines["1.tar", "0"]["row"]], list(again))
    for name, values in again.items():
        assert values[0].tobytes() == stored[name][0].tobytes(), name
        assert np.isfinite(values).all()


def test_other_weights_are_another_identity(tmp_path: Path, weights: Path) -> None:
    """A LoRA that was trained on must not go on in the same store, whatever its file is called."""
    shards = write_shards(tmp_path / "shards")
    spec = spec_of(tmp_path / "store", shards, weights)
    assert extract.run(spec, serial=True, limit=1) == endings.DONE
    moved = tmp_path / "moved.safetensors"
    moved.write_bytes((weights / "a.safetensors").read_bytes())
    document = spec.model_dump(mode="json")
    for group in document["groups"]:
        for technique in group["techniques"]:
            if technique["type"] == "lora":
                technique["source"] = str(moved)
    assert extract.run(ExtractSpec.model_validate(document), serial=True, limit=1) == endings.DONE
    unet: Any = diffusers.UNet2DConditionModel.from_pretrained(embedded.BACKBONE, subfolder="unet")
    write_kohya(moved, unet, seed=1)
    with pytest.raises(IdentityError, match=r"groups\.4\.techniques\.1\.files\.lora/weights: the store has"):
        extract.run(ExtractSpec.model_validate(document), serial=True)


def test_a_missing_field_is_named_before_work(tmp_path: Path, weights: Path) -> None:
    spec = spec_of(tmp_path / "store", write_shards(tmp_path / "shards"), weights)
    document = spec.model_dump(mode="json")
    document["groups"][1]["techniques"][0]["source"] = str(tmp_path / "nowhere")
    with pytest.raises(ValueError, match=r"controlnet '.*nowhere': no such folder"):
        extract.run(ExtractSpec.model_validate(document), serial=True)
    assert not (tmp_path / "store").exists()


def edges(images: np.ndarray) -> np.ndarray:
    """A control image of the user's own."""
    return (images > 127).astype(np.float32)


def test_an_extractor_of_a_store_that_moved(tmp_path: Path, weights: Path) -> None:
    """Its spec names weights by where they were, and functions that opening it must not run unasked."""
    own = tmp_path / "own"
    shutil.copytree(weights, own)
    shards = write_shards(tmp_path / "shards")
    technique = {"type": "controlnet", "source": str(own / "canny"), "image": f"call:{__name__}:edges"}
    group = {"name": "a", "t": 50, "taps": TAP, "techniques": [technique]}
    spec = spec_of(tmp_path / "store", shards, own, groups=[group])
    assert extract.run(spec, serial=True, limit=1) == endings.DONE
    shutil.move(own, tmp_path / "away")
    with pytest.raises(
        ValueError, match=r"names the function 'call:.*:edges' to be imported and run; pass allow"
    ):
        FeatureExtractor.from_store(spec.store)
    with pytest.raises(ValueError, match=r"controlnet '.*own/canny': no such folder"):
        FeatureExtractor.from_store(spec.store, allow_calls=True)
    moved = {str(own / "canny"): str(tmp_path / "away" / "canny")}
    again = FeatureExtractor.from_store(spec.store, moved=moved, allow_calls=True)
    found = again([jpeg(40, 60, seed=0)], ids=[("0.tar", "0")])[f"a/{TAP}"]
    store = FeatureStore(spec.store)
    assert found.tobytes() == store.read(store.rows("a"), [f"a/{TAP}"])[f"a/{TAP}"].tobytes()
