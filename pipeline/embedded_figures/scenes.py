"""Scenes to measure on, read from shards: picture, caption, class of each pixel, quality."""

from __future__ import annotations

import io
import json
from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
from numpy.typing import NDArray
from PIL import Image

from pipeline.decode import picture
from pipeline.scenes.captions import QUALITY_WORDS, Quality
from pipeline.scenes.cutouts import CLASSES
from pipeline.shards import Sample, list_shards, read_shard
from schemas.spec import Input

_MEMBERS = ("json", "seg.png")


@dataclass(frozen=True, eq=False)
class Scene:
    """One picture, and what is known of it."""

    id: tuple[str, str]
    """Shard id and key, which noise belongs to."""
    pixels: NDArray[np.uint8]
    """RGB [H, W, 3]."""
    caption: str
    labels: NDArray[np.uint8]
    """[H, W], a class a pixel; 0 is background."""
    quality: Quality
    class_ids: frozenset[int]
    """Of its things, seen or hidden."""

    @property
    def content(self) -> str:
        """The caption without its words on quality."""
        return self.caption.removesuffix(QUALITY_WORDS[self.quality])


def read_scenes(shards: str, most: int, without: Collection[str] = ()) -> list[Scene]:
    """The first `most` scenes of a URL, in the order of its shards; fewer if there are fewer.

    Args:
        shards: path, pattern or URL of WebDataset tars with `jpg`, `txt`, `seg.png` and `json`, or `embedded`.
        most: how many.
        without: scenes to pass over, as SHARD/KEY with the shard's file name, in whatever folder it lies.

    Raises:
        ValueError: no shards, a sample that is no scene, or scenes of several sizes.
        BadShard: a damaged tar.
        OSError: storage failed.
    """
    spec = Input(shards=shards, image_field="jpg")
    scenes = list(islice((_scene(*one) for one in _samples(spec) if _name(*one) not in without), most))
    if not scenes:
        raise ValueError(f"{shards}: no scene in it; expected samples with jpg, txt, seg.png and json")
    sizes = {scene.pixels.shape for scene in scenes}
    if len(sizes) > 1:
        raise ValueError(
            f"{shards}: scenes of several sizes, such as {' and '.join(map(str, sorted(sizes)[:2]))}; give them one"
        )
    return scenes


def shuffled_captions(scenes: Sequence[Scene]) -> list[str | None]:
    """For each scene the caption of the next one that shares no class with it; None where all share one."""
    found: list[str | None] = []
    for place, scene in enumerate(scenes):
        others = (scenes[(place + step) % len(scenes)] for step in range(1, len(scenes)))
        found.append(next((one.caption for one in others if not one.class_ids & scene.class_ids), None))
    return found


def _samples(spec: Input) -> Iterator[tuple[str, Sample]]:
    for shard in list_shards(spec):
        for sample in read_shard(shard, spec, controls=_MEMBERS):
            yield shard.id, sample


def _name(shard: str, sample: Sample) -> str:
    return f"{shard.rpartition('/')[2]}/{sample.key}"


def _scene(shard: str, sample: Sample) -> Scene:
    try:
        if sample.image is None or sample.caption is None:
            raise ValueError(sample.detail or "it has no caption in txt")
        pixels = np.asarray(picture(sample.image, 2**24))
        known = json.loads(_member(sample, "json"))
        labels = np.asarray(Image.open(io.BytesIO(_member(sample, "seg.png"))))
        quality = known.get("quality", "plain")
        if quality not in QUALITY_WORDS:
            raise ValueError(f"its json has quality {quality!r}, and known are {', '.join(QUALITY_WORDS)}")
        if labels.shape != pixels.shape[:2] or labels.dtype != np.uint8 or labels.max() >= len(CLASSES):
            raise ValueError(
                f"its seg.png is {labels.dtype} {list(labels.shape)} with values up to {labels.max()}, and its picture"
                f" {list(pixels.shape[:2])} with {len(CLASSES)} classes"
            )
        class_ids = frozenset(int(thing["class_id"]) for thing in known["objects"])
    except (ValueError, KeyError, TypeError, AttributeError) as error:
        raise ValueError(
            f"sample {sample.key!r} of {shard} is no scene: {error}; expected jpg, txt, seg.png and json as"
            " `gatehouse embedded scenes` writes it"
        ) from error
    return Scene((shard, sample.key), pixels, sample.caption, labels, quality, class_ids)


def _member(sample: Sample, name: str) -> bytes:
    data = sample.fields[name]
    if not isinstance(data, bytes):
        raise ValueError(data.detail)
    return data
