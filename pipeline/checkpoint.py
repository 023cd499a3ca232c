"""A backbone's files: found, fetched to this machine, checked and fingerprinted before anything is loaded.

Only safetensors, JSON and text files are ever fetched or opened, so no pickle can run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import os
import re
import tempfile
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import huggingface_hub
from platformdirs import user_cache_dir

from pipeline import embedded
from pipeline.storage import open_fs
from schemas.spec import Backbone

COMPONENTS = ("unet", "vae", "text_encoder", "tokenizer", "scheduler")
_FAMILIES = ("StableDiffusionPipeline", "StableDiffusionImg2ImgPipeline")  # the same files
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
_SAFE = (".safetensors", ".json", ".txt")
_INDEX = "model_index.json"


def locate(spec: Backbone) -> Path:
    """The local folder of a backbone, fetched first where its source is a URL or a hub id.

    Raises:
        ValueError: no such folder, a hub id without a revision, a family that is not supported, weights that are
            missing or only there as pickle.
    """
    if spec.source == "embedded":
        folder = Path(embedded.BACKBONE)
    elif "://" in spec.source:
        folder = _fetch(spec.source)
    elif os.path.isdir(spec.source):
        folder = Path(spec.source)
    elif re.fullmatch(r"[\w.-]+/[\w.-]+", spec.source):
        folder = _fetch_from_hub(spec)
    else:
        raise ValueError(
            f"backbone.source {spec.source!r}: no such folder; give a diffusers folder, a URL of one,"
            " a hub id 'owner/name' with its revision, or 'embedded'"
        )
    _check(folder, spec.source)
    return folder


def config(folder: Path, component: str) -> dict[str, Any]:
    """A component's config as a dictionary."""
    name = "scheduler_config.json" if component == "scheduler" else "config.json"
    loaded: dict[str, Any] = json.loads((folder / component / name).read_text())
    return loaded


def fingerprint(folder: Path) -> dict[str, str]:
    """SHA-256 of every file that is loaded, by path inside the folder."""
    files = sorted(
        path for component in COMPONENTS for path in (folder / component).iterdir() if _is_loaded(path)
    )
    with ThreadPoolExecutor(4) as pool:
        hashes = pool.map(lambda path: _sha256(path, path.stat().st_size, path.stat().st_mtime_ns), files)
        return {str(path.relative_to(folder)): value for path, value in zip(files, hashes, strict=True)}


@functools.lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    """Of a file, read once as long as its size and time of modification stay the same."""
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def _is_loaded(path: Path) -> bool:
    """Whether a file of a diffusers folder is one that is opened: no pickle, no variant, no other component."""
    if path.parent.name not in COMPONENTS:
        return False
    return bool(_WEIGHTS.fullmatch(path.name)) or path.suffix in (".json", ".txt")


def _check(folder: Path, source: str) -> None:
    if not (folder / _INDEX).is_file():
        raise ValueError(f"backbone {source!r}: has no {_INDEX}, so it is no diffusers folder")
    family = json.loads((folder / _INDEX).read_text()).get("_class_name")
    if family not in _FAMILIES:
        raise ValueError(f"backbone {source!r} is a {family}; supported are {', '.join(_FAMILIES)}")
    for component in COMPONENTS:
        if not (folder / component).is_dir():
            raise ValueError(f"backbone {source!r}: the component {component!r} is missing")
    for component in ("unet", "vae", "text_encoder"):
        found = [path.name for path in (folder / component).iterdir()]
        if not any(_WEIGHTS.fullmatch(name) for name in found):
            pickles = [name for name in found if name.endswith((".bin", ".ckpt", ".pt", ".pth"))]
            reason = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
            raise ValueError(
                f"backbone {source!r}: {component} has {reason}; save it with"
                " save_pretrained(..., safe_serialization=True), since pickles can run code"
            )


def _fetch(url: str) -> Path:
    """Copy a folder from object storage into the user's cache, once per version of its files."""
    fs, root = open_fs(url.rstrip("/"))
    listing = {Path(path).relative_to(root): info for path, info in fs.find(root, detail=True).items()}
    found = {
        path: info
        for path, info in listing.items()
        if str(path) == _INDEX or (len(path.parts) == 2 and _is_loaded(path))
    }
    if not found:
        raise ValueError(f"backbone.source {url!r}: no diffusers folder there, or no right to list it")
    # All that the listing says of the files, since what changes with a file's content differs by file system.
    version = json.dumps([url, sorted((str(path), info) for path, info in found.items())], default=str)
    folder = Path(user_cache_dir("gatehouse")) / hashlib.sha256(version.encode()).hexdigest()[:24]
    if folder.is_dir():
        return folder
    folder.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder.parent, ignore_cleanup_errors=True) as staging:
        staged = Path(staging) / "backbone"
        for path, info in found.items():
            (staged / path).parent.mkdir(parents=True, exist_ok=True)
            fs.get_file(info["name"], str(staged / path))
        try:
            staged.rename(folder)
        except OSError:  # another process of this machine was first
            if not folder.is_dir():
                raise
    return folder


def _fetch_from_hub(spec: Backbone) -> Path:
    if not re.fullmatch(r"[0-9a-f]{40}", spec.revision or ""):
        raise ValueError(
            f"backbone.source {spec.source!r} is no folder here, so it is a hub id; backbone.revision must pin it to a"
            f" commit of 40 hex digits, and is {spec.revision!r}"
        )
    patterns = [f"{component}/*{ending}" for component in COMPONENTS for ending in _SAFE]
    folder = huggingface_hub.snapshot_download(
        spec.source,
        revision=spec.revision,
        allow_patterns=[_INDEX, *patterns],
        ignore_patterns=["*.fp16.*", "*non_ema*"],
    )
    return Path(folder)
