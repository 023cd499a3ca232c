"""The files of a diffusers folder, read without loading anything: configs, hashes, what weights there are.

Only safetensors, JSON and text files are ever opened, so no pickle can run.
"""

from __future__ import annotations

import functools
import hashlib
import json
import re
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

INDEX = "model_index.json"
_WEIGHTS = re.compile(r"(diffusion_pytorch_model|model)(-\d+-of-\d+)?\.safetensors")
_PICKLES = (".bin", ".ckpt", ".pt", ".pth")
_TEXTS = (".json", ".txt", ".model", ".jinja")  # .model: a tokenizer's SentencePiece model, a protocol buffer


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


@functools.lru_cache
def _sha256(path: Path, size: int, mtime_ns: int) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


def is_loaded(name: str) -> bool:
    """Whether a file in a component's folder is one that is opened: no pickle, no variant, nothing of another tool."""
    return bool(_WEIGHTS.fullmatch(name)) or name.endswith(_TEXTS)


def check_weights(folder: Path, subject: str) -> None:
    """Raise ValueError unless a component's folder has safetensors; `subject` begins the message."""
    found = [path.name for path in folder.iterdir()]
    if not any(_WEIGHTS.fullmatch(name) for name in found):
        pickles = [name for name in found if name.endswith(_PICKLES)]
        reason = f"only pickled weights ({', '.join(pickles)})" if pickles else "no weights"
        raise ValueError(
            f"{subject} has {reason}; save it with save_pretrained(..., safe_serialization=True), since pickles can"
            " run code"
        )
