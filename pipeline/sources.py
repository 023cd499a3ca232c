"""Where weights come from: folders, object storage, a hub, a single file. All are brought to this machine and checked.

A URL or a hub id is fetched once into the user's cache, and no more of it than is loaded: safetensors, JSON and
tokenizers' own files.
"""

from __future__ import annotations

import json
import os
import re
from collections.abc import Sequence
from fnmatch import fnmatchcase
from pathlib import Path, PurePosixPath

import huggingface_hub

from pipeline import checkpoint, embedded, families, single_file
from pipeline.backbone import Backbone as Family
from pipeline.cache import cached, staging
from pipeline.storage import open_fs
from schemas.spec import Backbone

_HUB_ID = re.compile(r"[\w.-]+/[\w.-]+")
_COMMIT = re.compile(r"[0-9a-f]{40}")


def locate(spec: Backbone) -> Path:
    """The local folder of a backbone, with its weights.

    Raises:
        ValueError: no such folder, a hub id without a revision, a family that is not supported, components or weights
            that are missing or only there as pickle, a single file without a fitting `config`.
    """
    if spec.config is not None:
        texts = configs(spec)
        family = families.family(texts)
        folder = single_file.convert(file(spec.source, subject="backbone"), texts, family)
    else:
        family = _family(spec.source, spec.revision)
        patterns = _patterns(family.parts(), weights=True)
        folder = _folder(spec.source, spec.revision, "backbone", patterns)
    _check(family, folder, spec.source, weights=True)
    return folder


def configs(spec: Backbone) -> Path:
    """A local folder with a backbone's configs and tokenizers, and maybe not its weights.

    Raises:
        ValueError: as `locate`, but for what concerns weights.
    """
    if spec.config is not None and not spec.source.endswith(".safetensors"):
        raise ValueError(
            f"backbone.config is given, but backbone.source {spec.source!r} is no single .safetensors file; leave one"
            " of them out"
        )
    source = spec.source if spec.config is None else spec.config
    family = _family(source, spec.revision)
    folder = _folder(source, spec.revision, "backbone", _patterns(family.parts(), weights=False))
    _check(family, folder, source, weights=False)
    return folder


def weight_bytes(spec: Backbone) -> int | None:
    """Bytes of a backbone's weights, which stay where they are; None where only a hub knows.

    Raises:
        ValueError: as `configs`.
    """
    if spec.config is not None:
        fs, path = open_fs(_shipped(spec.source))
        return int(fs.info(path)["size"])
    parts = families.family(configs(spec)).parts()
    wanted = [f"{part}/{kind}" for part in parts for kind in checkpoint.WEIGHTS]
    if "://" not in spec.source:
        folder = Path(embedded.BACKBONE) if spec.source == "embedded" else Path(spec.source)
        if not folder.is_dir():
            return None
        return sum(file.stat().st_size for pattern in wanted for file in folder.glob(pattern))
    fs, root = open_fs(spec.source.rstrip("/"))
    found = fs.find(root, detail=True)
    sizes = {str(PurePosixPath(path).relative_to(root)): int(info["size"]) for path, info in found.items()}
    return sum(size for path, size in sizes.items() if any(fnmatchcase(path, one) for one in wanted))


def component(source: str, revision: str | None, *, subject: str) -> Path:
    """The local folder of a single model: a ControlNet, an image encoder.

    Raises:
        ValueError: as `locate`; `subject` begins the message.
    """
    patterns = ["config.json", *checkpoint.TEXTS, *checkpoint.WEIGHTS]
    folder = _folder(_shipped(source), revision, subject, patterns)
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
        return _fetch(source, ["*.safetensors"], subject) / PurePosixPath(source).name
    path = _shipped(source)
    if not os.path.isfile(path):
        raise ValueError(f"{subject} {source!r}: no such file")
    return Path(path)


def _shipped(source: str) -> str:
    """`embedded/NAME`, what ships beside the embedded backbone, as a path, unless a folder here has that name."""
    path = Path(embedded.BACKBONE).parent / source.removeprefix("embedded/")
    return str(path) if source.startswith("embedded/") and not os.path.exists(source) else source


def _family(source: str, revision: str | None) -> type[Family]:
    """Which decides what of a source is fetched."""
    folder = _folder(source, revision, "backbone", [checkpoint.INDEX])
    if not (folder / checkpoint.INDEX).is_file():
        raise ValueError(f"backbone {source!r}: has no {checkpoint.INDEX}, so it is no diffusers folder")
    return families.named(checkpoint.pipeline_class(folder), source)


def _patterns(parts: Sequence[str], *, weights: bool) -> list[str]:
    kinds = [*checkpoint.TEXTS, *(checkpoint.WEIGHTS if weights else ())]
    return [checkpoint.INDEX, *(f"{part}/{kind}" for part in parts for kind in kinds)]


def _check(family: type[Family], folder: Path, source: str, *, weights: bool) -> None:
    for part in family.parts():
        if not (folder / part).is_dir():
            if part in family.optional_parts:
                continue
            raise ValueError(
                f"backbone {source!r}: the component {part!r} is missing; a {checkpoint.pipeline_class(folder)} has"
                f" {', '.join(family.parts())}"
            )
        if weights and part in family.weighted_parts():
            checkpoint.check_weights(folder / part, f"backbone {source!r}: {part}")


def _folder(source: str, revision: str | None, subject: str, patterns: Sequence[str]) -> Path:
    """A local folder with at least the files of a source that match the patterns."""
    if source == "embedded":
        return Path(embedded.BACKBONE)
    if "://" in source and not source.endswith(".safetensors"):
        return _fetch(source, patterns, subject)
    if os.path.isdir(source):
        return Path(source)
    if source.endswith(".safetensors"):
        raise ValueError(
            f"{subject} {source!r} is a single file, which says nothing of its networks; give `config`, a diffusers"
            " folder of the same architecture"
        )
    if _HUB_ID.fullmatch(source):
        return _fetch_from_hub(source, revision, subject, patterns)
    raise ValueError(
        f"{subject} {source!r}: no such folder; give a diffusers folder, a URL of one, a hub id 'owner/name' with its"
        " revision, or 'embedded'"
    )


def _fetch(url: str, patterns: Sequence[str], subject: str) -> Path:
    """Copy the files of a folder that match, or one file, into a folder of the user's cache, once per version."""
    fs, root = open_fs(url.rstrip("/"))
    listing = {root: fs.info(root)} if fs.isfile(root) else fs.find(root, detail=True)
    base = PurePosixPath(root).parent if root in listing else PurePosixPath(root)
    places = {str(PurePosixPath(path).relative_to(base)): info for path, info in listing.items()}
    found = {
        path: info
        for path, info in places.items()
        if any(fnmatchcase(path, one) and path.count("/") == one.count("/") for one in patterns)
    }
    if not found:
        raise ValueError(f"{subject} {url!r}: there is no {patterns[0]}, or no right to list it")
    # All that the listing says of the files, since what changes with a file's content differs by file system.
    version = json.dumps([url, sorted(found.items())], default=str)
    folder = cached(version)
    if not folder.is_dir():
        with staging(folder) as staged:
            for path, info in found.items():
                (staged / path).parent.mkdir(parents=True, exist_ok=True)
                fs.get_file(info["name"], str(staged / path))
    return folder


def _fetch_from_hub(source: str, revision: str | None, subject: str, patterns: Sequence[str]) -> Path:
    if not _COMMIT.fullmatch(revision or ""):
        raise ValueError(
            f"{subject} {source!r} is no folder here, so it is a hub id; its revision must pin it to a commit of 40 hex"
            f" digits, and is {revision!r}"
        )
    return Path(huggingface_hub.snapshot_download(source, revision=revision, allow_patterns=list(patterns)))
