"""Pictures in files, to predict on, with what the prompts and techniques of feature groups take of each.

As in a shard, what belongs to a picture has its name: `horse.txt` has the caption of `horse.jpg`, `horse.json` the
fields that prompts take, `horse.depth.png` the control image `depth.png`. All is checked before anything is computed.
"""

from __future__ import annotations

import json
import logging
import posixpath
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any, Final

from fsspec import AbstractFileSystem

from pipeline.bad import BadSample
from pipeline.decode import decode_beside, picture
from pipeline.geometry import Size
from pipeline.listing import url_of
from pipeline.shard_writer import ImageFile, find_images, with_keys
from pipeline.storage import open_fs
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")
_TOLD: Final = 8
"""Faults that are named, at most."""


@dataclass(frozen=True)
class Given:
    """A picture that can be predicted on."""

    key: str
    """Names what is written of it: its path under the folder that was given, without extension."""
    url: str
    size: Size
    """(height, width) in pixels, upright."""
    texts: dict[str, str]
    """What prompts take, by placeholder."""
    controls: dict[str, str]
    """URLs of control images, by tar extension."""

    def read(self) -> bytes:
        """The file."""
        return _read(self.url)

    def control(self, field: str) -> bytes:
        """A control image's file."""
        return _read(self.controls[field])


def find(
    paths: Sequence[str], spec: ExtractSpec, caption: str | None = None, out: str | None = None
) -> list[Given]:
    """Pictures in the order given, those of a folder by name, each once.

    Args:
        paths: image files and folders, searched with their subfolders; any fsspec URL.
        spec: how their features are computed: its groups say what each picture needs.
        caption: of pictures that have none beside them.
        out: a folder that is left out of the search.

    Raises:
        ValueError: a path that does not exist or is no image, no picture at all, pictures that cannot be decoded, or
            something that a group takes and a picture has not; names them.
        OSError: storage failed.
    """
    images = _pictures(_images(paths, out))
    if not images:
        where = f" outside of {out}, where predictions are written" if out is not None else ""
        raise ValueError(f"no images in {', '.join(paths)}{where}")
    found, faults = [], []
    for key, image in with_keys(images):
        try:
            found.append(_checked(key, image, spec, caption))
        except ValueError as error:
            faults.append(f"{url_of(image.fs, image.path)}: {error}")
    if faults:
        more = [f"and {len(faults) - _TOLD} more"] if len(faults) > _TOLD else []
        raise ValueError("\n".join([*faults[:_TOLD], *more]))
    return found


def _images(paths: Sequence[str], out: str | None) -> dict[str, ImageFile]:
    """Image files by URL, but for those in `out`."""
    found: dict[str, ImageFile] = {}
    for path in paths:
        for image in find_images([path]):
            found.setdefault(url_of(image.fs, image.path), image)
    if out is None:
        return found
    folder = url_of(*open_fs(out)).rstrip("/")
    return {url: image for url, image in found.items() if not url.startswith(f"{folder}/")}


def _pictures(images: dict[str, ImageFile]) -> list[ImageFile]:
    """Without those that belong to others, such as `horse.seg.png` beside `horse.jpg`."""
    stems = {posixpath.splitext(url)[0] for url in images}
    left_out = {url for url in images if posixpath.splitext(url)[0] != (stem := _stem(url)) and stem in stems}
    if left_out:
        logger.warning(
            "%d images are left out that belong to others, such as %s", len(left_out), min(left_out)
        )
    return [image for url, image in images.items() if url not in left_out]


def _stem(url: str) -> str:
    """Up to the first dot of the name, as shards split names."""
    folder, name = posixpath.split(url)
    return posixpath.join(folder, name.partition(".")[0])


def _checked(key: str, image: ImageFile, spec: ExtractSpec, caption: str | None) -> Given:
    upright = picture(image.fs.cat_file(image.path), spec.input.max_pixels)
    size = (upright.height, upright.width)
    stem = posixpath.splitext(image.path)[0]
    texts = {name: _text(image.fs, stem, name, spec, caption) for name in _placeholders(spec)}
    controls = {
        field: _control(image.fs, f"{stem}.{field}", size, group, spec)
        for group, field in _control_fields(spec)
    }
    return Given(key, url_of(image.fs, image.path), size, texts, controls)


def _control(fs: AbstractFileSystem, path: str, size: Size, group: str, spec: ExtractSpec) -> str:
    """URL of the control image that a group takes of a picture of this size."""
    name = posixpath.basename(path)
    if not fs.exists(path):
        raise ValueError(
            f"feature group {group!r} takes a control image; put it beside the picture, as {name}"
        )
    try:
        image_size = (spec.image_size[0], spec.image_size[1])
        decode_beside(fs.cat_file(path), size, image_size, spec.input.max_pixels, spec.fit)
    except BadSample as error:
        raise ValueError(f"control image {name}: {error}") from error
    return url_of(fs, path)


def _placeholders(spec: ExtractSpec) -> list[str]:
    return list(dict.fromkeys(name for group in spec.groups for name in group.placeholders))


def _control_fields(spec: ExtractSpec) -> Iterator[tuple[str, str]]:
    """(group, field)."""
    for group in spec.groups:
        for technique in group.techniques:
            if technique.type == "controlnet" and technique.field is not None:
                yield group.name, technique.field


def _text(fs: AbstractFileSystem, stem: str, name: str, spec: ExtractSpec, caption: str | None) -> str:
    """What a placeholder stands for."""
    source = name
    if name == "caption":
        source = spec.input.caption_field or "txt"
    extension, _, field = source.partition(":")
    found = _beside(fs, f"{stem}.{extension}", field)
    if found is None and name == "caption":
        found = caption
    if found is None:
        groups = " and ".join(repr(group.name) for group in spec.groups if name in group.placeholders)
        wanted = f"{posixpath.basename(stem)}.{extension}" + (f" with the field {field!r}" if field else "")
        other = ", or give --caption" if name == "caption" else ""
        raise ValueError(
            f"the prompt of feature group {groups} has {{{name}}}; put {wanted} beside the picture{other}"
        )
    return found


def _beside(fs: AbstractFileSystem, path: str, field: str) -> str | None:
    """A text, or the field of a json; None where there is none."""
    if not fs.exists(path):
        return None
    name = posixpath.basename(path)
    try:
        text = fs.cat_file(path).decode("utf-8-sig").strip()
        found: Any = json.loads(text) if field else text
    except ValueError as error:
        raise ValueError(
            f"{name} cannot be read ({error}); it must be {'JSON' if field else 'text'} in UTF-8"
        ) from error
    if not field:
        return found
    value = found.get(field) if isinstance(found, dict) else None
    if value is not None and not isinstance(value, str):
        raise ValueError(f"{name}: field {field!r} is a {type(value).__name__}; a prompt takes a string")
    return value and value.strip()


def _read(url: str) -> bytes:
    fs, path = open_fs(url)
    return bytes(fs.cat_file(path))
