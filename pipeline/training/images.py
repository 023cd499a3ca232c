"""Captioned images of shards, decoded into memory: what a small network is trained on."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import torch
from torch import Tensor

from pipeline.bad import BadSample
from pipeline.decode import decode
from pipeline.shards import list_shards, read_shard
from pipeline.training.digest import digest
from schemas.spec import Input


@dataclass(frozen=True)
class Images:
    """All of them, in the order of shards and samples."""

    pixels: Tensor
    """uint8 [n, 3, H, W], RGB."""
    captions: list[str]

    @cached_property
    def digest(self) -> str:
        """Of all of it."""
        return digest(self.pixels, self.captions)

    def __len__(self) -> int:
        return len(self.captions)


def read_images(shards: str, size: int, limit: int | None = None) -> Images:
    """Read the images of `shards` (as in a spec's `input.shards`), stretched to [size, size] pixels.

    Raises:
        ValueError: an image that is bad or has no caption; training data are not repaired in silence.
        OSError: storage failed.
    """
    pixels, captions = [], []
    for image, caption in _stream(Input(shards=shards), size):
        pixels.append(image)
        captions.append(caption)
        if len(captions) == limit:
            break
    if not captions:
        raise ValueError(f"{shards!r} holds no samples to train on; give shards of captioned images")
    return Images(torch.from_numpy(np.stack(pixels)), captions)


def as_input(pixels: Tensor) -> Tensor:
    """uint8 [B, 3, H, W] to float32 in [-1, 1], channels last: the layout that convolutions are fastest in."""
    return (pixels.float() / 127.5 - 1).contiguous(memory_format=torch.channels_last)


def _stream(spec: Input, size: int) -> Iterator[tuple[np.ndarray, str]]:
    for shard in list_shards(spec):
        for sample in read_shard(shard, spec):
            try:
                if sample.image is None or sample.caption is None:
                    raise BadSample(sample.reason or "no-caption", sample.detail)
                yield decode(sample.image, (size, size), spec.max_pixels).pixels, sample.caption
            except BadSample as error:
                raise ValueError(
                    f"{shard.url}: sample {sample.key!r} cannot be trained on: {error}"
                ) from error
