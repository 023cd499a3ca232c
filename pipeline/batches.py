"""A shard to batches of decoded pixels, with a record for every sample, good or bad.

What a sample lacks beside its image (a caption, a field of its json, a control image) does not make it bad: the batch
says why each slot lacks it, and only the groups that need it fail.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterator, Mapping
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from pipeline.batch import Batch
from pipeline.captions import Captions
from pipeline.decode import Decoded, decode, decode_beside
from pipeline.geometry import Box
from pipeline.meter import Meter
from pipeline.shards import BadSample, BadShard, Sample, Shard, in_slots, read_shard
from schemas.spec import ExtractSpec


@dataclass(frozen=True)
class Assignment:
    """The part of a shard that one attempt is to do."""

    shard: Shard
    round: int = 0
    start: int | None = 0
    """Every sample from this position on; None for none but `only`."""
    only: frozenset[int] = frozenset()
    """Positions to do besides, such as those that failed before."""
    stop: int | None = None
    """Position at which a limit cuts the shard; None for its end."""
    done: int = 0
    """Samples at positions before this have an outcome from earlier rounds."""

    def wants(self, position: int) -> bool:
        """Whether the sample at a position is to be done."""
        return position in self.only or (self.start is not None and position >= self.start)


@dataclass
class Record:
    """A sample's outcome: one line of the index. `key` None speaks of the shard as such."""

    position: int
    key: str | None
    reason: str | None = None
    detail: str = ""
    caption: str | None = None
    """The one that prompts take."""
    height: int | None = None
    width: int | None = None
    box: Box | None = None
    """Where the picture lies in the image that the network sees: top, left, height, width in pixels."""
    sha256: str | None = None
    groups: dict[str, str | None] = field(default_factory=dict)
    """Reason of each feature group's failure, None where it is stored."""
    scores: dict[str, float] = field(default_factory=dict)
    """Of feature groups that are stored, where the spec asks for them."""
    row: int | None = None
    """Place among the attempt's rows; the attempt turns it into a row of the arrays."""

    @property
    def status(self) -> str:
        """ok, partial (some groups failed) or failed."""
        failed = sum(reason is not None for reason in self.groups.values())
        if self.reason is not None or (failed and failed == len(self.groups)):
            return "failed"
        return "partial" if failed else "ok"

    @property
    def outcome(self) -> str:
        """The first reason, or `ok`."""
        return self.reason or next((reason for reason in self.groups.values() if reason), "ok")


@dataclass
class LoadedBatch:
    """A batch and the records of its slots; None where a slot holds nothing to do."""

    batch: Batch
    records: list[Record | None]


@dataclass(frozen=True)
class ShardEnd:
    """What was found at the end of a shard."""

    stop: int
    """Samples at positions before this have been seen."""
    complete: bool
    """False when the assignment's limit came before the shard's end."""
    bad: BadShard | None = None


def read_batches(
    assignment: Assignment, spec: ExtractSpec, pool: Executor, meter: Meter | None = None
) -> Iterator[LoadedBatch | ShardEnd]:
    """Read, decode and batch a shard; the last item is a `ShardEnd`.

    Args:
        assignment: what of the shard is wanted.
        spec: of the job.
        pool: decodes.
        meter: told of the bytes and seconds that this takes.

    Raises:
        OSError: the shard or its captions could not be read; nothing is known of its samples.
        CaptionsError: `input.captions` holds none for the shard.
    """
    shard, meter = assignment.shard, meter or Meter()
    captions = {} if spec.input.captions is None else Captions(spec.input.captions).of(shard.id)
    seen, complete, bad = 0, True, None

    def wanted() -> Iterator[Sample]:
        nonlocal seen, complete
        for sample in read_shard(shard, spec.input, spec.control_fields, spec.json_fields, meter):
            if assignment.stop is not None and sample.index >= assignment.stop:
                complete = False
                return
            seen = sample.index + 1
            if assignment.wants(sample.index):
                yield sample

    try:
        for samples in meter.each("read", shard.id, in_slots(wanted(), spec.backbone.batch_size)):
            with meter.stage("decode", shard.id):
                loaded = _load(shard, samples, captions, spec, pool)
            yield loaded
    except BadShard as error:
        bad = error
    yield ShardEnd(seen, complete, bad)


@dataclass
class _Slot:
    """A sample on its way into a batch."""

    record: Record
    texts: dict[str, str | BadSample]
    decoded: Decoded | None = None
    """None when the sample is bad."""
    fields: dict[str, np.ndarray | BadSample] = field(default_factory=dict)


def _load(
    shard: Shard, samples: list[Sample], captions: Mapping[str, str], spec: ExtractSpec, pool: Executor
) -> LoadedBatch:
    size = spec.backbone.batch_size
    shape = (size, 3, *spec.image_size)
    names = ["caption", *(f"json:{name}" for name in spec.json_fields)]
    controls = spec.control_fields
    batch = Batch(
        ids=[None] * size,
        pixels=np.zeros(shape, np.uint8),
        boxes=np.zeros((size, 4), np.int32),
        texts={name: [None] * size for name in names},
        text_reasons={name: [None] * size for name in names},
        fields={name: np.zeros(shape, np.uint8) for name in controls},
        field_reasons={name: [None] * size for name in controls},
    )
    records: list[Record | None] = [None] * size
    prepared = pool.map(lambda sample: _prepare(sample, captions, spec), samples)
    for sample, slot in zip(samples, prepared, strict=True):
        place = sample.index % size
        records[place] = slot.record
        if slot.decoded is not None:
            batch.ids[place] = (shard.id, sample.key)
            _fill(batch, place, slot, slot.decoded)
    return LoadedBatch(batch, records)


def _fill(batch: Batch, place: int, slot: _Slot, decoded: Decoded) -> None:
    batch.pixels[place] = decoded.pixels
    batch.boxes[place] = decoded.box
    for name, text in slot.texts.items():
        if isinstance(text, BadSample):
            batch.text_reasons[name][place] = text.reason
        else:
            batch.texts[name][place] = text
    for name, image in slot.fields.items():
        if isinstance(image, BadSample):
            batch.field_reasons[name][place] = image.reason
        else:
            batch.fields[name][place] = image


def _prepare(sample: Sample, captions: Mapping[str, str], spec: ExtractSpec) -> _Slot:
    caption = _caption(sample, captions, spec)
    texts = sample.texts if caption is None else {**sample.texts, "caption": caption}
    used = caption if isinstance(caption, str) else None
    record = Record(sample.index, sample.key, sample.reason, sample.detail, used)
    slot = _Slot(record, texts)
    if sample.image is None:
        return slot
    record.sha256 = hashlib.sha256(sample.image).hexdigest()
    height, width = spec.image_size
    try:
        decoded = decode(sample.image, (height, width), spec.input.max_pixels, spec.fit)
    except BadSample as error:
        record.reason, record.detail = error.reason, error.detail
        return slot
    record.height, record.width, record.box = decoded.height, decoded.width, decoded.box
    slot.decoded = decoded
    slot.fields = {name: _control(name, data, decoded, spec) for name, data in sample.fields.items()}
    record.detail = _lacking(slot, spec)
    return slot


def _caption(sample: Sample, captions: Mapping[str, str], spec: ExtractSpec) -> str | BadSample | None:
    """The sample's own caption, else the one that the caption job made; None where neither is asked for."""
    own = sample.texts.get("caption")
    if isinstance(own, str) or spec.input.captions is None:
        return own
    absent = f"{spec.input.captions} has no caption of {sample.key!r}"
    problem = BadSample(own.reason, f"{own.detail}; {absent}") if own else BadSample("no-caption", absent)
    return captions.get(sample.key, problem)


def _control(
    name: str, data: bytes | BadSample, picture: Decoded, spec: ExtractSpec
) -> np.ndarray | BadSample:
    if isinstance(data, BadSample):
        return data
    height, width = spec.image_size
    original = (picture.height, picture.width)
    try:
        return decode_beside(data, original, (height, width), spec.input.max_pixels, spec.fit)
    except BadSample as error:
        if error.reason == "field-aspect":
            return BadSample(error.reason, f"{name} {error.detail}")
        return BadSample("undecodable-field", f"{name}: {error}")


def _lacking(slot: _Slot, spec: ExtractSpec) -> str:
    """What groups need and the sample lacks, for people."""
    needed = {name for group in spec.groups for name in group.placeholders}
    parts = [*(text for name, text in slot.texts.items() if name in needed), *slot.fields.values()]
    return "; ".join(dict.fromkeys(part.detail for part in parts if isinstance(part, BadSample)))
