"""A shard to its captions: read, decode and prepare ahead, caption in batches, store once.

Batches never cross shards, and a sample's slot is its position modulo the batch size, so that a repeated shard gives
the same bytes. No Ray here.
"""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from time import perf_counter
from typing import TypeVar

from pipeline import captions as store
from pipeline import checkpoint, decode
from pipeline.captioner import Captioner, Inputs, locate
from pipeline.captions import CaptionRecord, Captions
from pipeline.shards import BadSample, BadShard, Sample, Shard, in_slots, read_shard
from schemas.captions import CaptionsManifest, CaptionSpec

T = TypeVar("T")


@dataclass(frozen=True)
class Outcome:
    """What became of a shard's samples."""

    counts: dict[str, int]
    """Records by reason, `ok` for none."""


@dataclass(frozen=True)
class Preview:
    """A first look: the captions of a shard's first batch, and what they cost."""

    records: list[CaptionRecord]
    seconds_per_image: float
    parameters: int


@dataclass
class _Slot:
    record: CaptionRecord
    inputs: Inputs | None


class CaptionWorker:
    """Does shards one after the other.

    Args:
        spec: of the job.
        manifest: of its folder.
        device: cpu or cuda.

    Raises:
        CaptionsError: the model's files on this machine are not those that the folder's captions are made with.
        ValueError: no such model.
    """

    def __init__(self, spec: CaptionSpec, manifest: CaptionsManifest, device: str) -> None:
        self._spec = spec
        folder = locate(spec)
        if checkpoint.fingerprint_part(folder) != manifest.identity["model"]["files"]:
            raise store.CaptionsError(
                f"model {spec.model.source!r}: the files found on this machine are not those that captions"
                f" {spec.captions} are made with; give it the same files everywhere"
            )
        self._captioner = Captioner(folder, spec, device)
        self._captions = Captions(spec.captions)
        self._reader = ThreadPoolExecutor(1, "read")
        self._decoders = ThreadPoolExecutor(spec.cluster.cpus_per_actor, "decode")
        self.progress: Counter[str] = Counter()
        """Since the start: images, and of these bad."""

    def run(self, shard: Shard) -> Outcome:
        """Caption a shard and store what came of it.

        Raises:
            OSError: storage failed.
        """
        records: list[CaptionRecord] = []
        for slots in self._ahead(self._batches(shard)):
            done = self._caption(slots)
            records += done
            self.progress["images"] += sum(record.key is not None for record in done)
            self.progress["bad"] += sum(record.reason is not None for record in done)
        store.write(self._captions, shard, records)
        return Outcome(dict(Counter(record.reason or "ok" for record in records)))

    def preview(self, shard: Shard) -> Preview:
        """The first batch of a shard; nothing is stored."""
        slots = next(self._batches(shard), [])
        started = perf_counter()
        records = self._caption(slots)
        seconds = (perf_counter() - started) / self._spec.model.batch_size
        return Preview(records, seconds, self._captioner.parameters)

    def _caption(self, slots: list[_Slot]) -> list[CaptionRecord]:
        size = self._spec.model.batch_size
        rows: list[Inputs | None] = [None] * size
        for slot in slots:
            if slot.inputs is not None:
                rows[slot.record.position % size] = slot.inputs
        texts = self._captioner.caption(rows)
        return [_with(slot.record, texts[slot.record.position % size]) for slot in slots]

    def _batches(self, shard: Shard) -> Iterator[list[_Slot]]:
        """Samples that share a forward pass; at the end perhaps a record of the shard as such, alone."""
        position = 0
        try:
            for samples in in_slots(read_shard(shard, self._spec.input), self._spec.model.batch_size):
                position = samples[-1].index + 1
                yield list(self._decoders.map(self._prepare, samples))
        except BadShard as error:
            yield [_Slot(CaptionRecord(position, None, reason=error.reason, detail=error.detail), None)]

    def _prepare(self, sample: Sample) -> _Slot:
        record = CaptionRecord(sample.index, sample.key, reason=sample.reason, detail=sample.detail)
        if sample.image is None:
            return _Slot(record, None)
        record = replace(record, sha256=hashlib.sha256(sample.image).hexdigest())
        try:
            picture = decode.picture(sample.image, self._spec.input.max_pixels)
            return _Slot(record, self._captioner.prepare(picture))
        except BadSample as error:
            return _Slot(replace(record, reason=error.reason, detail=error.detail), None)

    def _ahead(self, items: Iterator[T]) -> Iterator[T]:
        """The items, each made while the one before it is in use."""
        coming = self._reader.submit(next, items, None)
        while (item := coming.result()) is not None:
            coming = self._reader.submit(next, items, None)
            yield item


def _with(record: CaptionRecord, text: str | None) -> CaptionRecord:
    if text is None:
        return record
    if not text:
        return replace(record, reason="empty-caption", detail="the model said nothing")
    return replace(record, caption=text)
