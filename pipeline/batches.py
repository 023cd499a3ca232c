"""A shard to batches of decoded pixels, with a record for every sample, good or bad."""

from __future__ import annotations

import hashlib
from collections.abc import Iterator
from concurrent.futures import Executor
from dataclasses import dataclass, field

import numpy as np

from pipeline.decode import decode
from pipeline.features import Batch
from pipeline.shards import BadSample, BadShard, Sample, Shard, read_shard
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
    height: int | None = None
    width: int | None = None
    sha256: str | None = None
    groups: dict[str, str | None] = field(default_factory=dict)
    """Reason of each feature group's failure, None where it is stored."""
    row: int | None = None
    """Place among the attempt's rows; the attempt turns it into a row of the arrays."""

    @property
    def status(self) -> str:
        """ok, partial (some groups failed) or failed."""
        failed = sum(reason is not None for reason in self.groups.values())
        if self.reason is not None or (failed and failed == len(self.groups)):
            return "failed"
        return "partial" if failed else "ok"


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
    assignment: Assignment, spec: ExtractSpec, pool: Executor
) -> Iterator[LoadedBatch | ShardEnd]:
    """Read, decode and batch a shard; the last item is a `ShardEnd`.

    A sample's slot is its position modulo the batch size, so a retry or a continuation computes it where an
    undisturbed run would have.

    Raises:
        OSError: the shard could not be read; nothing is known of its samples.
    """
    size = spec.backbone.batch_size
    held: list[Sample] = []
    seen, complete, bad = 0, True, None
    try:
        for sample in read_shard(assignment.shard, spec.input):
            if assignment.stop is not None and sample.index >= assignment.stop:
                complete = False
                break
            seen = sample.index + 1
            if held and sample.index // size != held[0].index // size:
                yield _load(assignment.shard, held, spec, pool)
                held = []
            if assignment.wants(sample.index):
                held.append(sample)
    except BadShard as error:
        bad = error
    if held:
        yield _load(assignment.shard, held, spec, pool)
    yield ShardEnd(seen, complete, bad)


def _load(shard: Shard, samples: list[Sample], spec: ExtractSpec, pool: Executor) -> LoadedBatch:
    size = spec.backbone.batch_size
    height, width = spec.image_size
    batch = Batch(
        ids=[None] * size,
        pixels=np.zeros((size, 3, height, width), np.uint8),
        captions=[None] * size,
        caption_reasons=[None] * size,
    )
    records: list[Record | None] = [None] * size
    for sample, (record, pixels) in zip(
        samples, pool.map(lambda one: _decode(one, spec), samples), strict=True
    ):
        slot = sample.index % size
        records[slot] = record
        if pixels is not None:
            batch.ids[slot] = (shard.id, sample.key)
            batch.pixels[slot] = pixels
            batch.captions[slot] = sample.caption
            batch.caption_reasons[slot] = sample.caption_reason
    return LoadedBatch(batch, records)


def _decode(sample: Sample, spec: ExtractSpec) -> tuple[Record, np.ndarray | None]:
    detail = sample.detail or sample.caption_reason or ""
    record = Record(sample.index, sample.key, sample.reason, detail, sample.caption)
    if sample.image is not None:
        record.sha256 = hashlib.sha256(sample.image).hexdigest()
    if sample.reason is not None or sample.image is None:
        return record, None
    try:
        decoded = decode(sample.image, (spec.image_size[0], spec.image_size[1]), spec.input.max_pixels)
    except BadSample as error:
        record.reason, record.detail = error.reason, error.detail
        return record, None
    record.height, record.width = decoded.height, decoded.width
    return record, decoded.pixels
