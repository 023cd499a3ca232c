"""Images in files -> WebDataset shards, the same bytes each time.

Images are copied byte for byte, in the order of their paths, with the `.txt` beside each as its caption. A
key is the path under the given folder without extension, made fit for WebDataset, which splits names at the
first dot: dots and control characters become `_`. Where two images want one key (`a.jpg` beside `a.png`), the
later one's extension, and if need be a number, is added.
"""

from __future__ import annotations

import posixpath
import re
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any, TypeVar

from fsspec import AbstractFileSystem
from webdataset import TarWriter

from pipeline.listing import url_of
from pipeline.storage import names, open_fs
from schemas.spec import IMAGE_FIELDS

_UNFIT = re.compile(
    "[\\x00-\\x1f\\x7f-\\x9f\\ud800-\\udfff]"
)  # control characters, and bytes that are not UTF-8
_META = re.compile(r"^__(?=[^/]*__/)")  # folders that WebDataset takes for metadata

_Thing = TypeVar("_Thing")


@dataclass(frozen=True)
class ImageFile:
    """An image that was found, and whether a caption lies beside it."""

    name: str
    """Path under the given folder, with extension."""
    fs: AbstractFileSystem
    path: str
    captioned: bool
    """Whether a text lies beside it."""


def write_shards(paths: list[str], out: str, samples_per_shard: int) -> list[str]:
    """Pack images into `out`/shard-000000.tar and so on; the URLs of the shards, in order.

    Args:
        paths: image files and folders, searched with their subfolders (hidden files aside); any fsspec URL.
        out: URL of a folder without shards; made if need be.
        samples_per_shard: images a shard, at least 1.

    Raises:
        ValueError: no images found, a path that does not exist or is no image, or `out` already holds shards.
        OSError: storage failed; a shard that was being written is removed.
    """
    if samples_per_shard < 1:
        raise ValueError(f"samples per shard is {samples_per_shard}; a shard needs at least 1")
    images = find_images(paths)
    fs, folder = open_empty(out)
    keyed = list(with_keys(images))
    return [url_of(fs, shard) for shard in write_tars(fs, folder, "shard", keyed, samples_per_shard, _sample)]


def open_empty(out: str) -> tuple[AbstractFileSystem, str]:
    """File system and path of a folder for new shards, which need not exist yet.

    Raises:
        ValueError: it already holds shards.
    """
    fs, folder = open_fs(out)
    folder = folder.rstrip("/")
    fs.invalidate_cache()
    if any(name.endswith(".tar") for name in names(fs, folder)):
        raise ValueError(
            f"{out} already holds shards (*.tar), which would mix with new ones; give an empty folder"
        )
    return fs, folder


def write_tars(
    fs: AbstractFileSystem,
    folder: str,
    prefix: str,
    things: Sequence[_Thing],
    samples_per_shard: int,
    sample: Callable[[_Thing], dict[str, Any]],
) -> Iterator[str]:
    """Write things to `folder`/PREFIX-000000.tar and so on; each shard's path when it is there.

    Args:
        things: of which `sample` makes WebDataset samples, one in memory at a time.
    """
    fs.makedirs(folder, exist_ok=True)
    for start in range(0, len(things), samples_per_shard):
        shard = f"{folder}/{prefix}-{start // samples_per_shard:06d}.tar"
        _write(fs, shard, map(sample, things[start : start + samples_per_shard]))
        yield shard


def find_images(paths: list[str]) -> list[ImageFile]:
    """All images, each once, sorted by name."""
    found: dict[str, ImageFile] = {}
    for given in paths:
        fs, path = open_fs(given)
        path = path.rstrip("/")
        if fs.isdir(path):
            files = set(fs.find(path))
            images = [
                ImageFile(file[len(path) :].lstrip("/"), fs, file, _text(file) in files) for file in files
            ]
            images = [image for image in images if _is_image(image.name)]
        elif not fs.exists(path):
            raise ValueError(f"{given}: no such file or folder")
        elif not _is_image(posixpath.basename(path)):
            raise ValueError(f"{given}: not an image; allowed extensions are {', '.join(IMAGE_FIELDS)}")
        else:
            images = [ImageFile(posixpath.basename(path), fs, path, fs.exists(_text(path)))]
        for image in images:
            found.setdefault(url_of(fs, image.path), image)
    if not found:
        raise ValueError(f"no images (*.{', *.'.join(IMAGE_FIELDS)}) in {', '.join(paths)}")
    return sorted(found.values(), key=lambda image: (image.name, image.path))


def _text(path: str) -> str:
    """The caption's path."""
    return posixpath.splitext(path)[0] + ".txt"


def _is_image(name: str) -> bool:
    hidden = any(part.startswith(".") for part in name.split("/"))
    return not hidden and _extension(name) in IMAGE_FIELDS


def _extension(name: str) -> str:
    return posixpath.splitext(name)[1][1:].lower()


def with_keys(images: list[ImageFile]) -> Iterator[tuple[str, ImageFile]]:
    """Images with their keys, each of its own."""
    taken = set()
    for image in images:
        folder, file = posixpath.split(posixpath.splitext(image.name)[0])
        wanted = _META.sub("_", _UNFIT.sub("_", posixpath.join(folder, file.replace(".", "_"))))
        key, number = wanted, 1
        while key in taken:
            key = f"{wanted}_{_extension(image.name)}" + (f"_{number}" if number > 1 else "")
            number += 1
        taken.add(key)
        yield key, image


def _sample(keyed: tuple[str, ImageFile]) -> dict[str, Any]:
    key, image = keyed
    sample = {"__key__": key, _extension(image.name): image.fs.cat_file(image.path)}
    if image.captioned:
        sample["txt"] = image.fs.cat_file(_text(image.path))
    return sample


def _write(fs: AbstractFileSystem, shard: str, samples: Iterator[dict[str, Any]]) -> None:
    try:
        with (
            fs.open(shard, "wb") as file,
            TarWriter(file, encoder=False, mtime=0, user="", group="") as tar,
        ):
            for sample in samples:
                tar.write(sample)
    except BaseException:
        # Both are closed as if all had been written, so what is there looks like a whole shard.
        with suppress(FileNotFoundError):
            fs.rm_file(shard)
        raise
