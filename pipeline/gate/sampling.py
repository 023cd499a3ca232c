"""The images that GATE measures on: drawn from shards by the spec's seed, kept as they are encoded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import TypeVar

from pipeline.bad import BadSample
from pipeline.captions import Captions
from pipeline.decode import decode, decode_beside
from pipeline.drawing import Drawing
from pipeline.shards import Sample, Shard, read_shard
from schemas.gate import GateSpec
from schemas.groups import PLACEHOLDER
from schemas.techniques import ControlNet

T = TypeVar("T")


@dataclass(frozen=True)
class Drawn:
    """What was drawn, in the order of shards and samples."""

    ids: list[tuple[str, str]]
    """Shard id and key of each, which noise belongs to."""
    images: list[bytes]
    """Encoded."""
    texts: dict[str, list[str]]
    """`caption` and `json:FIELD` of each, as far as candidates take them."""
    controls: dict[str, list[bytes]]
    """By tar extension, the control image of each, encoded."""
    notes: list[str] = field(default_factory=list)
    """What a reader should know of the sample."""

    def __len__(self) -> int:
        return len(self.ids)

    def places(self, count: int) -> list[int]:
        """Of so many, evenly spaced: shards may be sorted by what they show."""
        count = min(count, len(self))
        return [len(self) * place // count for place in range(count)]

    def pick(self, places: Sequence[int]) -> Drawn:
        """Some of them."""

        def of(values: Sequence[T]) -> list[T]:
            return [values[place] for place in places]

        return Drawn(
            of(self.ids),
            of(self.images),
            {name: of(values) for name, values in self.texts.items()},
            {name: of(values) for name, values in self.controls.items()},
        )


def draw(spec: GateSpec, shards: Sequence[Shard]) -> Drawn:
    """As many good images as the spec asks for, or all there are.

    Raises:
        ValueError: fewer than two good images.
        CaptionsError: `input.captions` lacks a shard.
        OSError: storage failed.
    """
    names, fields = placeholders(spec), control_fields(spec)
    json_fields = [name.partition(":")[2] for name in names if name.startswith("json:")]
    made = Captions(spec.input.captions) if "caption" in names and spec.input.captions else None
    size = (spec.image_size[0], spec.image_size[1])

    def checked(shard: Shard, sample: Sample) -> tuple[str, Sample]:
        if sample.image is None:
            raise BadSample(sample.reason or "no-image", sample.detail)
        most = spec.input.max_pixels
        image = decode(sample.image, size, most, spec.fit)
        for name in fields:
            control = sample.fields.get(name)
            if not isinstance(control, bytes):
                raise BadSample("no-control", f"it has no {name}")
            decode_beside(control, (image.height, image.width), size, most, spec.fit)
        if made is not None and sample.caption is None and sample.key in (known := made.of(shard.id)):
            sample.texts["caption"] = known[sample.key]
        for name in names:
            if not isinstance(sample.texts.get(name), str):
                raise BadSample(f"no-{name.partition(':')[0]}", f"it has no {name}, which a candidate takes")
        return shard.id, sample

    drawing = Drawing(spec.input, checked, controls=fields, json_fields=json_fields)
    found = drawing.draw(shards, spec.images, spec.seed)
    if len(found) < 2:
        raise ValueError(
            "input.shards: found one good image; an interval needs two at least, so give more images"
        )
    samples = [sample for _, sample in found]
    texts = {name: [_text(sample, name) for sample in samples] for name in names}
    return Drawn(
        ids=[(shard, sample.key) for shard, sample in found],
        images=[sample.image for sample in samples if sample.image is not None],
        texts=texts,
        controls={name: [_control(sample, name) for sample in samples] for name in fields},
        notes=_notes(spec, len(found), drawing),
    )


def captioned(spec: GateSpec, shards: Sequence[Shard]) -> bool:
    """Whether there are captions, as far as the first sample tells."""
    if spec.input.captions is not None:
        return True
    first = next(read_shard(shards[0], spec.input), None) if shards else None
    return first is not None and first.caption is not None


def placeholders(spec: GateSpec) -> list[str]:
    """What prompts take from samples: `caption` and `json:FIELD`."""
    prompts = [spec.prompt, *(one.prompt for one in spec.candidates or () if one.prompt is not None)]
    return list(dict.fromkeys(name for prompt in prompts for name in PLACEHOLDER.findall(prompt)))


def control_fields(spec: GateSpec) -> list[str]:
    """Tar extensions of the control images that candidates take, in lower case."""
    techniques = [one for candidate in spec.candidates or () for one in candidate.techniques]
    fields = [one.field for one in techniques if isinstance(one, ControlNet)]
    return list(dict.fromkeys(field for field in fields if field is not None))


def _text(sample: Sample, name: str) -> str:
    found = sample.texts.get(name)
    assert isinstance(found, str)  # `checked` has seen to it
    return found


def _control(sample: Sample, name: str) -> bytes:
    data = sample.fields[name]
    assert isinstance(data, bytes)  # `checked` has seen to it
    return data


def _notes(spec: GateSpec, count: int, drawing: Drawing[tuple[str, Sample]]) -> list[str]:
    notes = []
    if count < spec.images:
        notes.append(f"{spec.images} images were asked for, the shards have {count} good ones")
    if bad := drawing.bad.total():
        told = ", ".join(f"{number} {reason}" for reason, number in drawing.bad.most_common())
        notes.append(f"{bad} drawn images are bad and gave way to others: {told}")
    return notes
