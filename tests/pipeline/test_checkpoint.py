"""Backbones found, fetched once, checked and fingerprinted; what is no safetensors is never touched."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest

from pipeline import checkpoint, embedded
from pipeline.checkpoint import fingerprint, locate
from pipeline.storage import open_fs
from schemas.spec import Backbone
from tests.conftest import BucketUrl
from tests.engines import copy_backbone

REVISION = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_backbone(tmp_path / "backbone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched backbones go."""
    monkeypatch.setattr(checkpoint, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "gatehouse"


def source(path: Path | str, **fields: Any) -> Backbone:
    return Backbone(source=str(path), **fields)


def test_embedded_and_folders(folder: Path) -> None:
    assert locate(Backbone()) == Path(embedded.BACKBONE)
    assert locate(source(folder)) == folder


def test_another_family(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "FluxPipeline"}))
    with pytest.raises(
        ValueError, match="backbone' is a FluxPipeline; supported are StableDiffusionPipeline"
    ):
        locate(source(folder))


@pytest.mark.parametrize("component", checkpoint.COMPONENTS)
def test_missing_component(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    with pytest.raises(ValueError, match=f"the component '{component}' is missing"):
        locate(source(folder))


def test_pickles_are_refused(folder: Path) -> None:
    """Loading one runs whatever code it holds."""
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "model.bin")
    with pytest.raises(
        ValueError, match=r"unet has only pickled weights \(model\.bin\); save it .*safe_serialization"
    ):
        locate(source(folder))


def test_no_weights_and_variants(folder: Path) -> None:
    """Of a folder that has `model.fp16.safetensors` alone, diffusers would not load it without being told."""
    weights = folder / "vae" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "vae" / "diffusion_pytorch_model.fp16.safetensors")
    with pytest.raises(ValueError, match="vae has no weights"):
        locate(source(folder))


def test_weights_in_parts(folder: Path) -> None:
    weights = folder / "unet" / "diffusion_pytorch_model.safetensors"
    weights.rename(folder / "unet" / "diffusion_pytorch_model-00001-of-00002.safetensors")
    assert locate(source(folder)) == folder
    assert "unet/diffusion_pytorch_model-00001-of-00002.safetensors" in fingerprint(folder)


@pytest.mark.parametrize("path", ["/nowhere/at/all", "nowhere", "a/b/c"])
def test_no_folder(path: str) -> None:
    with pytest.raises(ValueError, match="no such folder; give a diffusers folder, a URL of one, a hub id"):
        locate(source(path))


def test_some_other_folder(tmp_path: Path) -> None:
    with pytest.raises(ValueError, match=r"has no model_index\.json, so it is no diffusers folder"):
        locate(source(tmp_path))


@pytest.mark.parametrize("revision", [None, "main", REVISION[:7]])
def test_a_hub_id_needs_a_commit(revision: str | None) -> None:
    """A branch is something else tomorrow."""
    with pytest.raises(
        ValueError, match=r"owner/name' is no folder here, .*a commit of 40 hex digits, and is "
    ):
        locate(source("owner/name", revision=revision))


def test_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is asked for than what is loaded."""
    asked: dict[str, Any] = {}

    def download(name: str, **options: Any) -> str:
        asked.update(options, name=name)
        return str(folder)

    monkeypatch.setattr(huggingface_hub, "snapshot_download", download)
    assert locate(source("owner/name", revision=REVISION)) == folder
    assert (asked["name"], asked["revision"]) == ("owner/name", REVISION)
    suffixes = {Path(pattern).suffix for pattern in asked["allow_patterns"]}
    folders = {pattern.split("/")[0] for pattern in asked["allow_patterns"]}
    assert suffixes == {".safetensors", ".json", ".txt"}
    assert folders == {"model_index.json", *checkpoint.COMPONENTS}


def upload(folder: Path, url: str) -> None:
    fs, root = open_fs(url)
    for path in folder.rglob("*"):
        if path.is_file():
            fs.pipe_file(f"{root}/{path.relative_to(folder)}", path.read_bytes())


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """A backbone on object storage, with files beside it that must stay there."""
    if request.param == "memory":
        url = f"memory://{folder.parent.name}/backbone"
    else:
        bucket: BucketUrl = request.getfixturevalue("s3")
        url = f"{bucket()}/backbone"
    for stranger in (
        "evil.bin",
        "unet/diffusion_pytorch_model.bin",
        "unet/run.py",
        "v1-5-pruned.safetensors",
    ):
        (folder / stranger).write_bytes(b"stranger")
    for stranger in ("safety_checker/model.safetensors", "unet/diffusion_pytorch_model.fp16.safetensors"):
        (folder / stranger).parent.mkdir(exist_ok=True)
        (folder / stranger).write_bytes(b"stranger")
    upload(folder, url)
    return url


def test_fetched_once_and_only_what_is_loaded(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = locate(source(f"{url}/"))
    assert files(fetched) == files(Path(embedded.BACKBONE))
    assert fingerprint(fetched) == fingerprint(Path(embedded.BACKBONE))
    fs, _ = open_fs(url)
    monkeypatch.setattr(fs, "get_file", lambda *args: pytest.fail("fetched again"))
    assert locate(source(f"{url}/")) == fetched
    assert list(cache.iterdir()) == [fetched]


def test_new_files_at_an_old_url_are_fetched(url: str, cache: Path) -> None:
    """A file of the same size, on a file system without ETags, was taken from the cache for ever."""
    before = fingerprint(locate(source(url)))
    fs, root = open_fs(url)
    path = f"{root}/scheduler/scheduler_config.json"
    fs.pipe_file(path, fs.cat_file(path).replace(b"0.012", b"0.013"))
    after = fingerprint(locate(source(url)))
    assert [name for name in before if before[name] != after[name]] == ["scheduler/scheduler_config.json"]


def test_a_broken_fetch_leaves_nothing(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Half a backbone in the cache would be loaded, and what is left of many tries fills the disk."""
    fs, _ = open_fs(url)
    real, fetched = fs.get_file, []

    def break_off(path: str, target: str) -> None:
        fetched.append(path)
        if len(fetched) == 3:
            raise ConnectionError("broken off")
        real(path, target)

    monkeypatch.setattr(fs, "get_file", break_off)
    with pytest.raises(ConnectionError):
        locate(source(url))
    assert list(cache.iterdir()) == []
    assert files(locate(source(url))) == files(Path(embedded.BACKBONE))


def test_nothing_at_the_url(cache: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/some/picture.jpg", b"1")
    for url in ("memory://nothing/here", "memory://some"):
        with pytest.raises(ValueError, match=f"'{url}': no diffusers folder there, or no right to list it"):
            locate(source(url))


def test_fingerprint_sees_every_byte_that_is_loaded(folder: Path) -> None:
    """Also a change within one process, as in a notebook: hashes were kept by the folder's name."""
    before = fingerprint(folder)
    assert before.keys() == files(Path(embedded.BACKBONE)) - {"model_index.json"}
    for name in before:
        data = bytearray((folder / name).read_bytes())
        data[len(data) // 2] ^= 1
        (folder / name).write_bytes(data)
    after = fingerprint(folder)
    assert all(before[name] != after[name] for name in before)


def test_fingerprint_ignores_what_is_not_loaded(folder: Path) -> None:
    before = fingerprint(folder)
    (folder / "README.md").write_text("card")
    (folder / "unet" / "diffusion_pytorch_model.bin").write_bytes(b"pickle")
    (folder / "unet" / "diffusion_pytorch_model.non_ema.safetensors").write_bytes(b"variant")
    assert fingerprint(folder) == before
