"""Tars and images for tests, good and hostile."""

from __future__ import annotations

import io
import tarfile
from collections.abc import Iterable
from pathlib import Path

import numpy as np
from PIL import Image

from pipeline.shards import Shard
from pipeline.storage import open_fs

Member = tuple[str, bytes] | tarfile.TarInfo


def make_tar(path: str | Path | None, members: Iterable[Member], format: int = tarfile.PAX_FORMAT) -> bytes:
    """A tar of (name, bytes) pairs, or of headers without data (links), written to `path` if given."""
    buffer = io.BytesIO()
    with tarfile.open(
        fileobj=buffer, mode="w", format=format, encoding="utf-8", errors="surrogateescape"
    ) as tar:
        for member in members:
            if isinstance(member, tarfile.TarInfo):
                tar.addfile(member)
            else:
                header = tarfile.TarInfo(member[0])
                header.size = len(member[1])
                tar.addfile(header, io.BytesIO(member[1]))
    if path is not None:
        Path(path).write_bytes(buffer.getvalue())
    return buffer.getvalue()


def header(name: str, type: bytes, linkname: str = "") -> tarfile.TarInfo:
    """A member without data: a link, a folder, a device."""
    info = tarfile.TarInfo(name)
    info.type, info.linkname = type, linkname
    return info


def pixels(h: int, w: int, seed: int = 0) -> np.ndarray:
    """Smooth random colours, uint8 [h, w, 3]."""
    small = np.random.default_rng(seed).integers(0, 256, (4, 4, 3), dtype=np.uint8)
    return np.asarray(Image.fromarray(small).resize((w, h), Image.Resampling.BILINEAR))


def encode(image: Image.Image, format: str, **options: object) -> bytes:
    """The image's file."""
    buffer = io.BytesIO()
    image.save(buffer, format, **options)
    return buffer.getvalue()


def jpeg(h: int, w: int, seed: int = 0) -> bytes:
    """A JPEG of `pixels`."""
    return encode(Image.fromarray(pixels(h, w, seed)), "JPEG", quality=95)


def png(h: int, w: int, seed: int = 0) -> bytes:
    """A PNG of `pixels`, which it keeps exactly."""
    return encode(Image.fromarray(pixels(h, w, seed)), "PNG")


def shard_of(data: bytes, url: str) -> Shard:
    """Write a shard to a URL and describe it."""
    fs, path = open_fs(url)
    fs.pipe_file(path, data)
    return Shard(id=url.rsplit("/", 1)[-1], url=url, size=len(data), version="1")
