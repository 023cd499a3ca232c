"""Files of a diffusers folder, fingerprinted and checked; what is no safetensors is never touched."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from safetensors.torch import load_file

from pipeline import checkpoint, embedded
from pipeline.checkpoint import check_weights, fingerprint
from pipeline.families.stable_diffusion import StableDiffusion
from tests.engines import copy_backbone

PARTS = StableDiffusion.parts()
WEIGHTS = "diffusion_pytorch_model.safetensors"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_backbone(tmp_path / "backbone")


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_configs(folder: Path) -> None:
    assert checkpoint.config(folder, "unet")["_class_name"] == "UNet2DConditionModel"
    assert checkpoint.config(folder, "scheduler")["_class_name"] == "PNDMScheduler"
    assert checkpoint.config(folder / "unet") == checkpoint.config(folder, "unet")
    assert checkpoint.pipeline_class(folder) == "StableDiffusionPipeline"


def test_no_configs(folder: Path) -> None:
    with pytest.raises(ValueError, match=r"transformer has no config\.json"):
        checkpoint.config(folder, "transformer")
    with pytest.raises(ValueError, match=r"the folder has no config\.json"):
        checkpoint.config(folder)
    with pytest.raises(ValueError, match=r"has no model_index\.json, so it is no diffusers folder"):
        checkpoint.pipeline_class(folder / "unet")


def test_fingerprint_sees_every_byte_that_is_loaded(folder: Path) -> None:
    """Also a change within one process, as in a notebook: hashes were kept by the folder's name."""
    before = fingerprint(folder, PARTS)
    assert before.keys() == files(Path(embedded.BACKBONE)) - {"model_index.json"}
    for name in before:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    after = fingerprint(folder, PARTS)
    assert all(before[name] != after[name] for name in before)


def test_fingerprint_ignores_what_is_not_loaded(folder: Path) -> None:
    before = fingerprint(folder, PARTS)
    (folder / "README.md").write_text("card")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"variant")
    (folder / "unet" / "model.fp16-00001-of-00002.safetensors").write_bytes(b"variant")
    (folder / "safety_checker").mkdir()
    (folder / "safety_checker" / "config.json").write_text("{}")
    assert fingerprint(folder, PARTS) == before
    assert fingerprint(folder, [*PARTS, "not_there"]) == before


def test_pickles_are_refused(folder: Path) -> None:
    """Loading one runs whatever code it holds."""
    (folder / "unet" / WEIGHTS).rename(folder / "unet" / "model.bin")
    with pytest.raises(
        ValueError, match=r"the UNet has only pickled weights \(model\.bin\); save it .*safe_serialization"
    ):
        check_weights(folder / "unet", "the UNet")


def test_variants_alone_and_nothing(folder: Path) -> None:
    """Of a folder that has `model.fp16.safetensors` alone, diffusers would not load it without being told."""
    weights = folder / "vae" / WEIGHTS
    moved = weights.rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(
        ValueError, match=r"vae has no .*, only diffusion_pytorch_model\.fp16\.safetensors; rename"
    ):
        check_weights(folder / "vae", "vae")
    moved.unlink()
    with pytest.raises(ValueError, match="vae has no weights"):
        check_weights(folder / "vae", "vae")


def test_sharded_weights(folder: Path) -> None:
    """As large models are saved; a shard that is missing was noticed in the actors only."""
    unet = StableDiffusion.network_class.from_pretrained(folder, subfolder="unet")
    (folder / "unet" / WEIGHTS).unlink()
    unet.save_pretrained(folder / "unet", max_shard_size="10MB")
    shards = sorted((folder / "unet").glob("*-of-*.safetensors"))
    assert len(shards) > 1
    check_weights(folder / "unet", "unet")
    assert {f"unet/{path.name}" for path in shards} < fingerprint(folder, PARTS).keys()
    shards[1].unlink()
    with pytest.raises(ValueError, match=f"unet lacks {shards[1].name}, which its index lists"):
        check_weights(folder / "unet", "unet")


def test_an_index_of_nothing(folder: Path) -> None:
    """An index alone is no weights, and one beside the whole file is not read."""
    index = folder / "vae" / f"{WEIGHTS}.index.json"
    index.write_text(json.dumps({"weight_map": dict.fromkeys(load_file(folder / "vae" / WEIGHTS), "gone")}))
    check_weights(folder / "vae", "vae")
    (folder / "vae" / WEIGHTS).unlink()
    with pytest.raises(ValueError, match="vae lacks gone"):
        check_weights(folder / "vae", "vae")
