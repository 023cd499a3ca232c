"""What one actor does with its shards: read and decode, compute, compress and upload, all at the same time.

Three threads with bounded queues between them. All computing happens in one thread, so that a GPU sees one stream of
work and its memory one user. A shard flows behind the one before it: while one computes, the next is being read and
the last uploaded. No Ray here.
"""

from __future__ import annotations

import logging
import os
import threading
import traceback
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Queue

from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Assignment, LoadedBatch, Record, ShardEnd, read_batches
from pipeline.blocks import Block, BlockAssembler
from pipeline.features import Engine
from pipeline.meter import Meter
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")

_BATCHES_AHEAD = 4


@dataclass(frozen=True)
class Task:
    """An assignment, and where its rows may go."""

    assignment: Assignment
    hint: int
    """An extent that may be free."""
    rows_ready: int
    """Rows that all arrays are known to have."""


@dataclass
class _InWork:
    """A task on its way through the stages."""

    task: Task
    attempt: Attempt
    assembler: BlockAssembler
    future: Future[Outcome] = field(default_factory=Future)

    @property
    def settled(self) -> bool:
        """It has failed in some stage: the others pass over what is left of it."""
        return self.future.done()


class Worker:
    """Does tasks one behind the other.

    Args:
        spec: of the job.
        manifest: of its store.
        engine: with its backbone on the device.
        device: the device's model, for the record.
        requests: simultaneous storage requests allowed here.
        meter: that all stages report to.
    """

    def __init__(
        self,
        spec: ExtractSpec,
        manifest: Manifest,
        engine: Engine,
        *,
        device: str,
        requests: int,
        meter: Meter | None = None,
    ) -> None:
        self._spec, self._manifest, self._engine, self._device = spec, manifest, engine, device
        self._decoders = ThreadPoolExecutor(spec.cluster.cpus_per_actor, "decode")
        self._requests = ThreadPoolExecutor(requests, "request")
        self.meter = meter or Meter()
        self._inbox: Queue[_InWork] = Queue()
        self._loaded: Queue[tuple[_InWork, LoadedBatch | ShardEnd]] = Queue(_BATCHES_AHEAD)
        self._blocks: Queue[tuple[_InWork, Block | ShardEnd]] = Queue(1)
        for stage in (self._read, self._compute, self._write):
            threading.Thread(
                target=self._forever, args=(stage,), name=stage.__name__.strip("_"), daemon=True
            ).start()

    @property
    def progress(self) -> dict[str, float]:
        """Counters since the start, as `pipeline.meter` names them."""
        return self.meter.counters()

    @property
    def queues(self) -> dict[str, int]:
        """How much waits between the stages: tasks for the reader, batches for the backbone, blocks for the writer."""
        return {
            "tasks": self._inbox.qsize(),
            "batches": self._loaded.qsize(),
            "blocks": self._blocks.qsize(),
        }

    def submit(self, task: Task) -> Future[Outcome]:
        """Queue a task; its future holds the outcome, or what went wrong with the shard as a whole."""
        job = self._job(task)
        self._inbox.put(job)
        return job.future

    def run(self, task: Task) -> Outcome:
        """Do one task here and now, without threads: for debugging."""
        job = self._job(task)
        for item in read_batches(task.assignment, self._spec, self._decoders, self.meter):
            for block in self._assemble(job, item):
                job.attempt.write(block)
            if isinstance(item, ShardEnd):
                return self._finish(job, item)
        raise AssertionError("unreachable: a shard's last item is its end")

    def _job(self, task: Task) -> _InWork:
        attempt = Attempt(
            self._spec.store,
            self._manifest,
            task.assignment,
            device=self._device,
            hint=task.hint,
            rows_ready=task.rows_ready,
            pool=self._requests,
            meter=self.meter,
        )
        layouts = self._manifest.arrays if self._spec.output.maps else []
        rows = self._manifest.rows_per_block
        return _InWork(task, attempt, BlockAssembler(layouts, rows, pooled=self._spec.output.pooled))

    @staticmethod
    def _forever(stage: Callable[[], None]) -> None:
        try:
            while True:
                stage()
        except BaseException:  # a worker with a stage missing would wait for ever, so it ends whole
            traceback.print_exc()
            os._exit(1)

    def _read(self) -> None:
        job = self._inbox.get()
        try:
            for item in read_batches(job.task.assignment, self._spec, self._decoders, self.meter):
                self._loaded.put((job, item))
                if job.settled:
                    return
        except BaseException as error:  # whatever it is belongs to whoever waits for the shard
            self._fail(job, error)

    def _compute(self) -> None:
        job, item = self._loaded.get()
        if job.settled:
            return
        try:
            for block in list(self._assemble(job, item)):
                self._blocks.put((job, block))
            if isinstance(item, ShardEnd):
                self._blocks.put((job, item))
        except BaseException as error:
            self._fail(job, error)

    def _write(self) -> None:
        job, item = self._blocks.get()
        if job.settled:
            return
        try:
            if isinstance(item, ShardEnd):
                job.future.set_result(self._finish(job, item))
            else:
                job.attempt.write(item)
        except BaseException as error:
            self._fail(job, error)

    def _assemble(self, job: _InWork, item: LoadedBatch | ShardEnd) -> Iterator[Block]:
        shard = job.task.assignment.shard.id
        if isinstance(item, ShardEnd):
            yield from self.meter.each("assemble", shard, job.assembler.flush())
            return
        records = [record for record in item.records if record is not None]
        features = None
        if any(record.reason is None for record in records):
            with self.meter.stage("forward", shard):
                features = self._engine.run(item.batch)
        yield from self.meter.each("assemble", shard, job.assembler.add(item.records, features))
        self.meter.add("images", len(records))
        self._tell_bad(shard, [record for record in records if record.status != "ok"])

    def _tell_bad(self, shard: str, records: list[Record]) -> None:
        self.meter.add("bad", len(records))
        for record in records:
            self.meter.add(f"bad/{record.outcome}")
            about = {"shard": shard, "key": record.key, "position": record.position, "reason": record.outcome}
            logger.debug("bad sample: %s", record.detail or record.outcome, extra=about)

    def _finish(self, job: _InWork, end: ShardEnd) -> Outcome:
        outcome = job.attempt.commit(job.assembler, end)
        marker = outcome.marker
        about = {"shard": marker.shard, "round": marker.round, "attempt": job.attempt.id, "rows": marker.rows}
        if end.bad is not None:
            self.meter.add(f"bad_shards/{end.bad.reason}")
            logger.debug("bad shard: %s", end.bad.detail, extra={**about, "reason": end.bad.reason})
        logger.debug("committed" if outcome.committed else "another attempt was first", extra=about)
        return outcome

    @staticmethod
    def _fail(job: _InWork, error: BaseException) -> None:
        with suppress(InvalidStateError):  # another stage failed it first
            job.future.set_exception(error)
