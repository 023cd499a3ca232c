"""Where weights come from: folders, object storage, a hub, a single file. All are brought to this machine and checked.

A URL or a hub id is fetched once into the user's cache. Nothing but safetensors, JSON and text files is fetched.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Callable
from pathlib import Path, PurePosixPath

import huggingface_hub

from pipeline import checkpoint, embedded, families
from pipeline.cache import cached, staging
from pipeline.storage import open_fs
from schemas.spec import Backbone

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")
_HUB_FILES = ("*.safetensors", "*.json", "*.txt", "*.model", "*.jinja")
_NO_WEIGHTS = ("*.json", "*.txt", "*.model", "*.jinja")


def locate(spec: Backbone) -> Path:
    """The local folder of a backbone, with its weights.

    Raises:
        ValueError: no such folder, a hub id without a revision, a family that is not supported, components or weights
            that are missing or only there as pickle, a single file without a fitting `config`.
    """
    if spec.config is not None:
        if not spec.source.endswith(".safetensors"):
            raise ValueError(
                f"backbone.config is given, but backbone.source {spec.source!r} is no single .safetensors file; leave"
                " one of them out"
            )
        from pipeline import single_file

        folder = single_file.convert(file(spec.source, subject="backbone"), configs(spec))
    else:
        folder = _folder(spec.source, spec.revision, "backbone", weights=True)
    _check(folder, spec.source)
    return folder


def configs(spec: Backbone) -> Path:
    """A local folder with a backbone's configs and tokenizers, and maybe not its weights.

    Raises:
        ValueError: as `locate`, but for what concerns weights.
    """
    source = spec.source if spec.config is None else spec.config
    folder = _folder(source, spec.revision, "backbone", weights=False)
    families.named(_pipeline(folder, source), source)
    return folder


def component(source: str, revision: str | None, *, subject: str) -> Path:
    """The local folder of a single model: a ControlNet, an image encoder.

    Raises:
        ValueError: as `locate`; `subject` begins the message.
    """
    folder = _folder(source, revision, subject, weights=True)
    if not (folder / "config.json").is_file():
        raise ValueError(f"{subject} {source!r}: has no config.json, so it is no folder of a model")
    checkpoint.check_weights(folder, f"{subject} {source!r}")
    return folder


def file(source: str, *, subject: str) -> Path:
    """The local path of a .safetensors file.

    Raises:
        ValueError: no such file, or another format; `subject` begins the message.
    """
    if not source.endswith(".safetensors"):
        raise ValueError(
            f"{subject} {source!r}: weights are read from .safetensors files only, since pickles can run code"
        )
    if "://" in source:
        return _fetch(source, lambda path: True, subject)
    if not os.path.isfile(source):
        raise ValueError(f"{subject} {source!r}: no such file")
    return Path(source)


def _folder(source: str, revision: str | None, subject: str, *, weights: bool) -> Path:
    if source == "embedded":
        return Path(embedded.BACKBONE)
    if "://" in source:
        return _fetch(source, _loaded if weights else _is_text, subject)
    if os.path.isdir(source):
        return Path(source)
    if source.endswith(".safetensors"):
        raise ValueError(
            f"{subject} {source!r} is a single file, which says nothing of its networks; give `config`, a local"
            " diffusers folder of the same architecture"
        )
    if _HUB_ID.fullmatch(source):
        return _fetch_from_hub(source, revision, subject, weights=weights)
    raise ValueError(
        f"{subject} {source!r}: no such folder; give a diffusers folder, a URL of one, a hub id 'owner/name' with its"
        " revision, or 'embedded'"
    )


def _pipeline(folder: Path, source: str) -> str:
    if not (folder / checkpoint.INDEX).is_file():
        raise ValueError(f"backbone {source!r}: has no {checkpoint.INDEX}, so it is no diffusers folder")
    return checkpoint.pipeline_class(folder)


def _check(folder: Path, source: str) -> None:
    family = families.named(_pipeline(folder, source), source)
    for part in family.parts():
        if not (folder / part).is_dir():
            if part in family.optional_parts:
                continue
            raise ValueError(f"backbone {source!r}: the component {part!r} is missing")
        if part in family.weighted_parts():
            checkpoint.check_weights(folder / part, f"backbone {source!r}: {part}")


def _loaded(path: PurePosixPath) -> bool:
    return len(path.parts) <= 2 and (str(path) == checkpoint.INDEX or checkpoint.is_loaded(path.name))


def _is_text(path: PurePosixPath) -> bool:
    return _loaded(path) and path.suffix != ".safetensors"


def _fetch(url: str, wanted: Callable[[PurePosixPath], bool], subject: str) -> Path:
    """Copy a folder's files, or one file, into the user's cache, once per version."""
    fs, root = open_fs(url.rstrip("/"))
    listing = fs.find(root, detail=True)
    single = list(listing) == [root]
    base = PurePosixPath(root).parent if single else PurePosixPath(root)
    places = {PurePosixPath(path).relative_to(base): info for path, info in listing.items()}
    found = {path: info for path, info in places.items() if wanted(path)}
    if not found:
        raise ValueError(f"{subject} {url!r}: nothing to load there, or no right to list it")
    # All that the listing says of the files, since what changes with a file's content differs by file system.
    version = json.dumps([url, sorted((str(path), info) for path, info in found.items())], default=str)
    folder = cached(version)
    if not folder.is_dir():
        with staging(folder) as staged:
            for path, info in found.items():
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(info["name"], str(staged / path))
    return folder / next(iter(found)) if single else folder


def _fetch_from_hub(source: str, revision: str | None, subject: str, *, weights: bool) -> Path:
    if not _COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"{subject} {source!r} is no folder here, so it is a hub id; its revision must pin it to a commit of 40 hex"
            f" digits, and is {revision!r}"
        )
    kinds = _HUB_FILES if weights else _NO_WEIGHTS
    patterns = [*kinds, *(f"*/{kind}" for kind in kinds)]
    folder = huggingface_hub.snapshot_download(
        source, revision=revision, allow_patterns=patterns, ignore_patterns=["*.fp16.*", "*non_ema*"]
    )
    return Path(folder)
