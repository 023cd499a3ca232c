"""The images that a LoRA is trained on: a few, drawn from shards by a seed, decoded, each with its prompt."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.bad import BadSample
from pipeline.captions import Captions
from pipeline.decode import decode
from pipeline.drawing import Drawing
from pipeline.shards import Sample, Shard
from schemas.groups import PLACEHOLDER
from schemas.lora import LoraSpec


@dataclass(frozen=True)
class Example:
    """An image to train on."""

    shard: str
    key: str
    sha256: str
    """Of the image's encoded bytes."""
    prompt: str
    pixels: NDArray[np.uint8]
    """[3, H, W], RGB."""

    @property
    def id(self) -> str:
        """SHARD/KEY."""
        return f"{self.shard}/{self.key}"


@dataclass
class Drawn:
    """What was drawn."""

    examples: list[Example] = field(default_factory=list)
    """By shard and place in it."""
    bad: Counter[str] = field(default_factory=Counter)
    """Samples that were drawn, are bad, and gave way to others, by reason."""
    without_text: int = 0
    """Examples that lack what the prompt takes, and have the fallback."""


def draw_images(spec: LoraSpec, shards: Sequence[Shard]) -> Drawn:
    """As many good images as the spec asks for, or all there are.

    Raises:
        ValueError: no good image at all.
        CaptionsError: `input.captions` lacks a shard.
        OSError: storage failed.
    """
    drawn = Drawn()
    captions = Captions(spec.input.captions) if _takes_captions(spec) and spec.input.captions else None

    def example(shard: Shard, sample: Sample) -> Example:
        return _example(shard, sample, spec, {} if captions is None else captions.of(shard.id), drawn)

    drawing = Drawing(spec.input, example, json_fields=spec.json_fields)
    drawn.examples = drawing.draw(shards, spec.images, spec.seed)
    drawn.bad = drawing.bad
    return drawn


def _takes_captions(spec: LoraSpec) -> bool:
    return "caption" in spec.placeholders


def _example(
    shard: Shard, sample: Sample, spec: LoraSpec, captions: Mapping[str, str], drawn: Drawn
) -> Example:
    if sample.image is None:
        raise BadSample(sample.reason or "no-image", sample.detail)
    size = (spec.image_size[0], spec.image_size[1])
    decoded = decode(sample.image, size, spec.input.max_pixels, spec.fit)
    texts = {name: text for name, text in sample.texts.items() if isinstance(text, str)}
    if sample.key in captions:
        texts.setdefault("caption", captions[sample.key])
    lacks = any(name not in texts for name in spec.placeholders)
    drawn.without_text += lacks
    prompt = spec.fallback if lacks else PLACEHOLDER.sub(lambda found: texts[found[1]], spec.prompt)
    return Example(shard.id, sample.key, hashlib.sha256(sample.image).hexdigest(), prompt, decoded.pixels)
