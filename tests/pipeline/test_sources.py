"""Backbones and their parts found, fetched once and checked, whatever place they come from."""

from __future__ import annotations

import functools
import json
import shutil
import threading
from collections.abc import Iterator
from fnmatch import fnmatch
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import fsspec
import huggingface_hub
import pytest

from pipeline import cache as user_cache
from pipeline import embedded, families, sources
from pipeline.checkpoint import fingerprint
from pipeline.families.stable_diffusion import StableDiffusion
from pipeline.sources import locate
from pipeline.storage import open_fs
from schemas.spec import Backbone
from tests import backbones
from tests.conftest import BucketUrl
from tests.engines import copy_backbone

REVISION = "0123456789abcdef0123456789abcdef01234567"
PARTS = StableDiffusion.parts()
EMBEDDED = Path(embedded.BACKBONE)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return copy_backbone(tmp_path / "backbone")


@pytest.fixture
def cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Where fetched weights go."""
    monkeypatch.setattr(user_cache, "user_cache_dir", lambda name: str(tmp_path / "cache" / name))
    return tmp_path / "cache" / "gatehouse"


def source(path: Path | str, **fields: Any) -> Backbone:
    return Backbone(source=str(path), **fields)


def files(folder: Path) -> set[str]:
    return {str(path.relative_to(folder)) for path in folder.rglob("*") if path.is_file()}


def test_embedded_and_folders(folder: Path) -> None:
    assert locate(Backbone()) == sources.configs(Backbone()) == EMBEDDED
    assert locate(source(folder)) == sources.configs(source(folder)) == folder


@pytest.mark.parametrize("family", backbones.FAMILIES)
def test_every_family(family: str) -> None:
    folder = backbones.tiny(family)
    assert locate(source(folder)) == folder
    assert fingerprint(folder, families.family(folder).parts()).keys() == files(folder) - {"model_index.json"}


def test_another_family(folder: Path) -> None:
    (folder / "model_index.json").write_text(json.dumps({"_class_name": "WanPipeline"}))
    with pytest.raises(
        ValueError, match=r"backbone' is a WanPipeline; supported are StableDiffusionPipeline, .*IF"
    ):
        locate(source(folder))


@pytest.mark.parametrize("component", PARTS)
def test_missing_component(folder: Path, component: str) -> None:
    shutil.rmtree(folder / component)
    for find in (locate, sources.configs):
        with pytest.raises(
            ValueError, match=f"'{component}' is missing; a StableDiffusionPipeline has unet, vae"
        ):
            find(source(folder))


def test_optional_components(tmp_path: Path) -> None:
    """SD3's largest text encoder may be left out, the others not."""
    folder = tmp_path / "sd3"
    shutil.copytree(backbones.tiny("sd3"), folder)
    for part in ("text_encoder_3", "tokenizer_3"):
        shutil.rmtree(folder / part)
    assert locate(source(folder)) == folder
    shutil.rmtree(folder / "text_encoder_2")
    with pytest.raises(ValueError, match="'text_encoder_2' is missing"):
        locate(source(folder))


def test_weights_are_checked_where_they_are_needed(folder: Path) -> None:
    (folder / "unet" / "diffusion_pytorch_model.safetensors").rename(folder / "unet" / "model.bin")
    with pytest.raises(ValueError, match=r"backbone': unet has only pickled weights \(model\.bin\)"):
        locate(source(folder))
    assert sources.configs(source(folder)) == folder


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


class Hub:
    """The folder of a repository, and what was asked of it."""

    def __init__(self, folder: Path) -> None:
        self.folder, self.asked = folder, set[str]()

    def download(self, name: str, *, revision: str, allow_patterns: list[str]) -> str:
        assert (name, revision) == ("owner/name", REVISION)
        self.asked |= {
            path for path in files(self.folder) if any(fnmatch(path, one) for one in allow_patterns)
        }
        return str(self.folder)


def litter(folder: Path) -> None:
    """Files that repositories have besides, and that must stay there."""
    for stranger in (
        "evil.bin",
        "v1-5-pruned.safetensors",
        "unet/diffusion_pytorch_model.bin",
        "unet/diffusion_pytorch_model.fp16.safetensors",
        "unet/diffusion_pytorch_model.fp16-00001-of-00002.safetensors",
        "unet/run.py",
        "safety_checker/model.safetensors",
        "safety_checker/config.json",
        "onnx/unet/config.json",
    ):
        (folder / stranger).parent.mkdir(parents=True, exist_ok=True)
        (folder / stranger).write_bytes(b"stranger")


def test_from_the_hub(folder: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """No more is asked for than what is loaded."""
    litter(folder)
    hub = Hub(folder)
    monkeypatch.setattr(huggingface_hub, "snapshot_download", hub.download)
    assert sources.configs(source("owner/name", revision=REVISION)) == folder
    assert hub.asked == {name for name in files(EMBEDDED) if not name.endswith(".safetensors")}
    assert locate(source("owner/name", revision=REVISION)) == folder
    assert hub.asked == files(EMBEDDED)


def upload(folder: Path, url: str) -> None:
    fs, root = open_fs(url)
    for path in files(folder):
        fs.pipe_file(f"{root}/{path}", (folder / path).read_bytes())


@pytest.fixture(params=["memory", pytest.param("s3", marks=pytest.mark.s3)])
def url(request: pytest.FixtureRequest, folder: Path) -> str:
    """A backbone on object storage, with files beside it that must stay there."""
    if request.param == "memory":
        url = f"memory://{folder.parent.name}/backbone"
    else:
        bucket: BucketUrl = request.getfixturevalue("s3")
        url = f"{bucket()}/backbone"
    litter(folder)
    upload(folder, url)
    return url


def test_fetched_once_and_only_what_is_loaded(url: str, cache: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    fetched = locate(source(f"{url}/"))
    assert files(fetched) == files(EMBEDDED)
    assert fingerprint(fetched, PARTS) == fingerprint(EMBEDDED, PARTS)
    before = set(cache.iterdir())
    fs, _ = open_fs(url)
    monkeypatch.setattr(fs, "get_file", lambda *args: pytest.fail("fetched again"))
    assert locate(source(f"{url}/")) == fetched
    assert set(cache.iterdir()) == before


def test_configs_are_fetched_without_weights(url: str, cache: Path) -> None:
    """A command that lists taps must not wait for gigabytes."""
    fetched = sources.configs(source(url))
    assert files(fetched) == {name for name in files(EMBEDDED) if not name.endswith(".safetensors")}
    assert not list(cache.rglob("*.safetensors"))


def test_new_files_at_an_old_url_are_fetched(url: str, cache: Path) -> None:
    """A file of the same size, on a file system without ETags, was taken from the cache for ever."""
    before = fingerprint(locate(source(url)), PARTS)
    fs, root = open_fs(url)
    path = f"{root}/scheduler/scheduler_config.json"
    fs.pipe_file(path, fs.cat_file(path).replace(b"0.012", b"0.013"))
    after = fingerprint(locate(source(url)), PARTS)
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
    assert [files(one) for one in cache.iterdir()] == [{"model_index.json"}]
    assert files(locate(source(url))) == files(EMBEDDED)


def test_nothing_at_the_url(cache: Path) -> None:
    fsspec.filesystem("memory").pipe_file("/some/picture.jpg", b"1")
    for url in ("memory://nothing/here", "memory://some"):
        with pytest.raises(
            ValueError, match=rf"'{url}': there is no model_index\.json, or no right to list it"
        ):
            locate(source(url))


def test_a_component(tmp_path: Path, cache: Path) -> None:
    """A ControlNet or an image encoder: a folder of its own."""
    folder = tmp_path / "encoder"
    shutil.copytree(EMBEDDED / "text_encoder", folder)
    assert sources.component(str(folder), None, subject="encoder") == folder
    url = f"memory://{tmp_path.name}/encoder"
    litter(folder)
    upload(folder, url)
    assert files(sources.component(url, None, subject="encoder")) == {"config.json", "model.safetensors"}
    for stranger in folder.glob("*.safetensors"):
        stranger.unlink()
    with pytest.raises(ValueError, match=r"encoder '.*encoder' has only pickled weights \(evil\.bin"):
        sources.component(str(folder), None, subject="encoder")
    (folder / "config.json").unlink()
    with pytest.raises(
        ValueError, match=r"encoder '.*encoder': has no config\.json, so it is no folder of a model"
    ):
        sources.component(str(folder), None, subject="encoder")
    with pytest.raises(ValueError, match="encoder 'owner/name' is no folder here, so it is a hub id"):
        sources.component("owner/name", None, subject="encoder")


@pytest.fixture
def web(tmp_path: Path) -> Iterator[str]:
    """A web server of one folder, which has a LoRA."""
    (tmp_path / "web").mkdir()
    (tmp_path / "web" / "lora.safetensors").write_bytes(b"weights")

    class Quiet(SimpleHTTPRequestHandler):
        def log_message(self, format: str, *args: Any) -> None:
            pass

    handler = functools.partial(Quiet, directory=str(tmp_path / "web"))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield f"http://127.0.0.1:{server.server_port}"
        server.shutdown()


def test_a_file(tmp_path: Path, cache: Path, web: str) -> None:
    """LoRAs are single files, and mostly on web sites."""
    local = tmp_path / "web" / "lora.safetensors"
    fsspec.filesystem("memory").pipe_file(f"/{tmp_path.name}/lora.safetensors", b"weights")
    assert sources.file(str(local), subject="lora") == local
    for url in (f"memory://{tmp_path.name}/lora.safetensors", f"{web}/lora.safetensors"):
        fetched = sources.file(url, subject="lora")
        assert fetched.is_relative_to(cache) and fetched.read_bytes() == b"weights"
        assert fetched.name == "lora.safetensors" and sources.file(url, subject="lora") == fetched


def test_what_ships_beside_the_embedded_backbone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`embedded/NAME` is in the package, unless a folder here has that name; a name that does not ship is named."""
    monkeypatch.setattr(embedded, "BACKBONE", str(tmp_path / "backbone"))
    weights = tmp_path / "loras" / "a.safetensors"
    weights.parent.mkdir()
    weights.write_bytes(b"weights")
    assert sources.file("embedded/loras/a.safetensors", subject="lora") == weights
    with pytest.raises(ValueError, match=r"lora 'embedded/loras/b\.safetensors': no such file"):
        sources.file("embedded/loras/b.safetensors", subject="lora")
    (tmp_path / "embedded").mkdir()
    (tmp_path / "embedded" / "own.safetensors").write_bytes(b"own")
    monkeypatch.chdir(tmp_path)
    assert sources.file("embedded/own.safetensors", subject="lora").read_bytes() == b"own"


def test_no_such_file(cache: Path) -> None:
    with pytest.raises(ValueError, match=r"lora 'a\.pt': weights are read from \.safetensors files only"):
        sources.file("a.pt", subject="lora")
    with pytest.raises(ValueError, match=r"lora 'a\.safetensors': no such file"):
        sources.file("a.safetensors", subject="lora")
    with pytest.raises(ValueError, match=r"lora 'memory://gone/a\.safetensors': there is no "):
        sources.file("memory://gone/a.safetensors", subject="lora")
