"""The files of a diffusers folder, read without loading anything: configs, hashes, what weights there are.

Only safetensors, JSON and text files are ever opened, so no pickle can run.
"""

from __future__ import annotations

import functools
import hashlib
import json
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
WEIGHTS = (
    "diffusion_pytorch_model.safetensors",
    "diffusion_pytorch_model-?????-of-?????.safetensors",
    "model.safetensors",
    "model-?????-of-?????.safetensors",
)
"""Patterns of the weights that are loaded: no variants, such as `fp16`, and nothing of other tools."""
TEXTS = ("*.json", "*.txt", "*.model", "*.jinja")
"""Patterns of all else; *.model is a tokenizer's SentencePiece model, a protocol buffer."""
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")


def config(folder: Path, part: str = "") -> dict[str, Any]:
    """The config of a component, or of the folder itself when that is one.

    Raises:
        ValueError: there is none.
    """
    path = folder / part / ("scheduler_config.json" if part == "scheduler" else "config.json")
    if not path.is_file():
        raise ValueError(f"{folder}: {part or 'the folder'} has no {path.name}")
    loaded: dict[str, Any] = json.loads(path.read_text())
    return loaded


def pipeline_class(folder: Path) -> str:
    """The pipeline that a diffusers folder was saved from.

    Raises:
        ValueError: not a diffusers folder.
    """
    if not (folder / INDEX).is_file():
        raise ValueError(f"{str(folder)!r} has no {INDEX}, so it is no diffusers folder")
    return str(json.loads((folder / INDEX).read_text()).get("_class_name"))


def fingerprint(folder: Path, parts: Sequence[str]) -> dict[str, str]:
    """SHA-256 of every file of these components that is loaded, by path inside the folder."""
    return {
        f"{part}/{name}": value
        for part in sorted(parts)
        if (folder / part).is_dir()
        for name, value in fingerprint_part(folder / part).items()
    }


def fingerprint_part(folder: Path) -> dict[str, str]:
    """SHA-256 of every file of one component that is loaded, by name."""
    files = sorted(path for path in folder.iterdir() if is_loaded(path.name))
    with ThreadPoolExecutor(4) as pool:
        return {path.name: value for path, value in zip(files, pool.map(sha256, files), strict=True)}


def sha256(path: Path) -> str:
    """Of a file, read once as long as its size and time of modification stay the same."""
    about = path.stat()
    return _sha256(path, about.st_size, about.st_mtime_ns)


@functools.lru_cache(maxsize=1024)
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_loaded(name: str) -> bool:
    """Whether a file in a component's folder is one that is opened."""
    return any(fnmatchcase(name, pattern) for pattern in (*WEIGHTS, *TEXTS))


def check_weights(folder: Path, subject: str) -> None:
    """Raise ValueError unless a component's folder has all its safetensors; `subject` begins the message."""
    found = sorted(path.name for path in folder.iterdir())
    if any(name in found for name in (WEIGHTS[0], WEIGHTS[2])):
        return
    if shards := _shards(folder):
        missing = sorted(shards - set(found))
        if missing:
            raise ValueError(
                f"{subject} lacks {', '.join(missing)}, which its index lists; copy or fetch it anew"
            )
        return
    variants = [name for name in found if name.endswith(".safetensors")]
    pickles = [name for name in found if name.endswith(_PICKLES)]
    if variants:
        reason = f"no {WEIGHTS[0]} or {WEIGHTS[2]}, only {', '.join(variants)}; rename a variant to that"
    elif pickles:
        reason = (
            f"only pickled weights ({', '.join(pickles)}); save it with save_pretrained(...,"
            " safe_serialization=True), since pickles can run code"
        )
    else:
        reason = "no weights"
    raise ValueError(f"{subject} has {reason}")


def _shards(folder: Path) -> set[str]:
    """The files that an index of sharded weights names; none where there is no index."""
    for whole in (WEIGHTS[0], WEIGHTS[2]):
        index = folder / f"{whole}.index.json"
        if index.is_file():
            return set(json.loads(index.read_text())["weight_map"].values())
    return set()
