"""The images that a LoRA is trained on: a few, drawn from shards by a seed, decoded, each with its prompt.

All samples of the shards that are looked into have the same chance. Of very many shards no more are looked into than
images are asked for, since each must be read to count its samples; more only where too few of them are good.
"""

from __future__ import annotations

import hashlib
from collections import Counter, defaultdict
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from pipeline.bad import BadSample, BadShard
from pipeline.captions import Captions
from pipeline.decode import decode
from pipeline.shards import Sample, Shard, count_samples, read_shard
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
    random = np.random.default_rng(spec.seed)
    drawn, found = Drawn(), dict[tuple[str, int], Example]()
    captions = Captions(spec.input.captions) if _takes_captions(spec) and spec.input.captions else None
    order = [shards[place] for place in random.permutation(len(shards))]
    for first in range(0, len(order), spec.images):
        part = order[first : first + spec.images]
        places = [(shard, place) for shard in part for place in range(count_samples(shard, spec.input))]
        random.shuffle(places)
        while places and (lacking := spec.images - len(found)):
            chosen, places = places[:lacking], places[lacking:]
            found |= _read(chosen, spec, captions, drawn)
        if len(found) == spec.images:
            break
    if not found:
        told = ", ".join(f"{count} {reason}" for reason, count in drawn.bad.most_common()) or "no samples"
        raise ValueError(
            f"input.shards: found no image to train on in {len(shards)} shards ({told}); give shards with images"
        )
    drawn.examples = [found[place] for place in sorted(found)]
    return drawn


def _takes_captions(spec: LoraSpec) -> bool:
    return "caption" in spec.placeholders


def _read(
    chosen: Sequence[tuple[Shard, int]], spec: LoraSpec, captions: Captions | None, drawn: Drawn
) -> dict[tuple[str, int], Example]:
    """The good ones of some places in shards, by (shard id, place); the others are counted."""
    by_shard: dict[Shard, set[int]] = defaultdict(set)
    for shard, place in chosen:
        by_shard[shard].add(place)
    found = {}
    for shard, places in by_shard.items():
        made = {} if captions is None else captions.of(shard.id)
        for sample in _samples(shard, places, spec, drawn):
            try:
                found[shard.id, sample.index] = _example(shard, sample, spec, made, drawn)
            except BadSample as error:
                drawn.bad[error.reason] += 1
    return found


def _samples(shard: Shard, places: set[int], spec: LoraSpec, drawn: Drawn) -> Iterator[Sample]:
    """Those at some places; what lies behind a fault of the tar is counted as bad."""
    left = set(places)
    try:
        for sample in read_shard(shard, spec.input, json_fields=spec.json_fields):
            if sample.index in left:
                left.remove(sample.index)
                yield sample
            if not left:
                return
    except BadShard as error:
        drawn.bad[error.reason] += len(left)


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
