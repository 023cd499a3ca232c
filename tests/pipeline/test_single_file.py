"""Checkpoints of one file, with the names of the original code base."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file, save_file

from pipeline import cache as user_cache
from pipeline import families, sources
from pipeline.checkpoint import fingerprint
from schemas.spec import Backbone
from tests import backbones, single_files


@pytest.fixture(autouse=True)
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where what is converted goes."""
    monkeypatch.setattr(user_cache, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "gatehouse"


def saved(family: str, tmp_path: Path, **options: Any) -> Path:
    return single_files.save(backbones.tiny(family), tmp_path / f"{family}.safetensors", layers=1, **options)


def locate(file: Path | str, config: Path | str) -> Path:
    return sources.locate(Backbone(source=str(file), config=str(config)))


@pytest.mark.parametrize("family", ["sd1", "sd2-v", "sdxl"])
def test_the_same_as_the_folder_it_was_made_from(family: str, tmp_path: Path, cache: Path) -> None:
    """To the byte, so the store's identity does not depend on the form in which weights came, or on the machine."""
    folder = backbones.tiny(family)
    config = tmp_path / "config"  # a folder that has no weights
    shutil.copytree(folder, config, ignore=shutil.ignore_patterns("*.safetensors"))
    file = saved(family, tmp_path)
    found = locate(file, config)
    parts = families.family(folder).parts()
    assert fingerprint(found, parts) == fingerprint(folder, parts)
    assert found.is_relative_to(cache)
    moved = file.rename(tmp_path / "moved.safetensors")
    assert locate(moved, folder) == found and len(list(cache.iterdir())) == 1
    families.load(found, dtype=torch.float32, device="cpu")
    assert sources.configs(Backbone(source="unread.safetensors", config=str(config))) == config


def test_the_configs_count(tmp_path: Path) -> None:
    """Another scheduler, say, is another backbone."""
    config = tmp_path / "config"
    shutil.copytree(backbones.tiny("sd1"), config)
    scheduler = config / "scheduler" / "scheduler_config.json"
    scheduler.write_text(json.dumps(json.loads(scheduler.read_text()) | {"beta_end": 0.02}))
    file = saved("sd1", tmp_path)
    assert locate(file, config) != locate(file, backbones.tiny("sd1"))


def test_components_beside_those_that_are_used(tmp_path: Path) -> None:
    """The folders of Stable Diffusion 1 list a safety checker and its preprocessor, which no single file has."""
    config = tmp_path / "config"
    shutil.copytree(backbones.tiny("sd1"), config)
    index = config / "model_index.json"
    listed = {
        "feature_extractor": ["transformers", "CLIPImageProcessor"],
        "safety_checker": ["stable_diffusion", "StableDiffusionSafetyChecker"],
    }
    index.write_text(json.dumps(json.loads(index.read_text()) | listed))
    assert "safety_checker" not in [path.name for path in locate(saved("sd1", tmp_path), config).iterdir()]


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16])
def test_half_precision_stays(dtype: torch.dtype, tmp_path: Path) -> None:
    """The file is not twice as large afterwards, and nothing is rounded."""
    found = locate(saved("sd1", tmp_path, dtype=dtype), backbones.tiny("sd1"))
    for part in ("unet", "vae", "text_encoder"):
        (after,), (before,) = (
            list((one / part).glob("*.safetensors")) for one in (found, backbones.tiny("sd1"))
        )
        original = load_file(before)
        for name, value in load_file(after).items():
            assert value.dtype == dtype and torch.equal(value, original[name].to(dtype))


def test_mixed_precision_loses_nothing(tmp_path: Path) -> None:
    """A UNet in half precision beside a VAE in single precision."""
    file = saved("sd1", tmp_path)
    mixed = load_file(file)
    halves = {name: one.half() for name, one in mixed.items() if name.startswith("model.")}
    save_file(mixed | halves, file)
    found = locate(file, backbones.tiny("sd1"))
    name = "vae/diffusion_pytorch_model.safetensors"
    assert (found / name).read_bytes() == (backbones.tiny("sd1") / name).read_bytes()


def without(file: Path, prefix: str) -> None:
    save_file({name: one for name, one in load_file(file).items() if not name.startswith(prefix)}, file)


@pytest.mark.parametrize(
    ("prefix", "reason"),
    [
        ("first_stage_model.encoder.conv_in", "weights of a network are missing"),
        ("model.diffusion_model.out", "weights of a network are missing"),
        (
            "cond_stage_model.transformer.text_model.final",
            r"text_encoder has no final_layer_norm\.weight and 1 more",
        ),
        ("cond_stage_model", "CLIPTextModel. Weights for this component appear to be missing"),
        ("first_stage_model", "."),
    ],
)
def test_a_file_that_lacks_something(prefix: str, reason: str, tmp_path: Path, cache: Path) -> None:
    """Weights that were not there were left as memory that nobody wrote."""
    file = saved("sd1", tmp_path)
    without(file, prefix)
    with pytest.raises(ValueError, match=f"does not fit the configs of .*{reason}"):
        locate(file, backbones.tiny("sd1"))
    assert not list(cache.iterdir())


def test_configs_of_another_architecture(tmp_path: Path) -> None:
    file = saved("sd1", tmp_path)
    with pytest.raises(
        ValueError, match=r"does not fit the configs of '.*sd2-v' \(.*expected shape .*; give the diff"
    ):
        locate(file, backbones.tiny("sd2-v"))
    with pytest.raises(ValueError, match="diffusers reads no single files of a PixArtSigmaPipeline"):
        locate(file, backbones.tiny("pixart-sigma"))


def test_configs_of_a_smaller_network(tmp_path: Path) -> None:
    """Diffusers leaves out what has no place, with a warning."""
    file = saved("sd1", tmp_path)
    more = {"model.diffusion_model.input_blocks.4.0.in_layers.0.weight": torch.ones(16)}
    save_file(load_file(file) | more, file)
    with pytest.raises(ValueError, match=r"the file's UNet has (\d+) tensors, that of the configs \d+"):
        locate(file, backbones.tiny("sd1"))


def test_files_without_configs_and_configs_without_a_file(tmp_path: Path) -> None:
    with pytest.raises(
        ValueError, match="is a single file, which says nothing of its networks; give `config`"
    ):
        sources.locate(Backbone(source="model.safetensors"))
    with pytest.raises(
        ValueError, match=r"backbone\.config is given, but .* is no single \.safetensors file"
    ):
        locate(backbones.tiny("sd1"), backbones.tiny("sd1"))
    with pytest.raises(ValueError, match=r"'gone\.safetensors': no such file"):
        locate("gone.safetensors", backbones.tiny("sd1"))
