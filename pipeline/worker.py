"""What one actor does with its shards: read and decode, compute, compress and upload, all at the same time.

Three threads with bounded queues between them. All computing happens in one thread, so that a GPU sees one stream of
work and its memory one user. A shard flows behind the one before it: while one computes, the next is being read and
the last uploaded. No Ray here.
"""

from __future__ import annotations

import os
import threading
import traceback
from collections import defaultdict
from collections.abc import Callable, Iterator
from concurrent.futures import Future, InvalidStateError, ThreadPoolExecutor
from contextlib import suppress
from dataclasses import dataclass, field
from queue import Queue
from time import perf_counter

from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Assignment, LoadedBatch, ShardEnd, read_batches
from pipeline.blocks import Block, BlockAssembler
from pipeline.features import Engine
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

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
    """

    def __init__(
        self, spec: ExtractSpec, manifest: Manifest, engine: Engine, *, device: str, requests: int
    ) -> None:
        self._spec, self._manifest, self._engine, self._device = spec, manifest, engine, device
        self._decoders = ThreadPoolExecutor(spec.cluster.cpus_per_actor, "decode")
        self._requests = ThreadPoolExecutor(requests, "request")
        self.progress: dict[str, float] = defaultdict(float)
        """Since the start: images, bad, bytes_written, and seconds (`*_s`) that each stage worked."""
        self._inbox: Queue[_InWork] = Queue()
        self._loaded: Queue[tuple[_InWork, LoadedBatch | ShardEnd]] = Queue(_BATCHES_AHEAD)
        self._blocks: Queue[tuple[_InWork, Block | ShardEnd]] = Queue(1)
        for stage in (self._read, self._compute, self._write):
            threading.Thread(target=self._forever, args=(stage,), name=stage.__name__, daemon=True).start()

    def submit(self, task: Task) -> Future[Outcome]:
        """Queue a task; its future holds the outcome, or what went wrong with the shard as a whole."""
        job = self._job(task)
        self._inbox.put(job)
        return job.future

    def run(self, task: Task) -> Outcome:
        """Do one task here and now, without threads: for debugging."""
        job = self._job(task)
        for item in read_batches(task.assignment, self._spec, self._decoders):
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
            started = perf_counter()
            for item in read_batches(job.task.assignment, self._spec, self._decoders):
                self.progress["read_s"] += perf_counter() - started
                self._loaded.put((job, item))
                if job.settled:
                    return
                started = perf_counter()
        except BaseException as error:  # whatever it is belongs to whoever waits for the shard
            self._fail(job, error)

    def _compute(self) -> None:
        job, item = self._loaded.get()
        if job.settled:
            return
        try:
            started = perf_counter()
            blocks = list(self._assemble(job, item))
            self.progress["compute_s"] += perf_counter() - started
            for block in blocks:
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
            started = perf_counter()
            if isinstance(item, ShardEnd):
                job.future.set_result(self._finish(job, item))
            else:
                job.attempt.write(item)
            self.progress["write_s"] += perf_counter() - started
        except BaseException as error:
            self._fail(job, error)

    def _assemble(self, job: _InWork, item: LoadedBatch | ShardEnd) -> Iterator[Block]:
        if isinstance(item, ShardEnd):
            yield from job.assembler.flush()
            return
        records = [record for record in item.records if record is not None]
        good = any(record.reason is None for record in records)
        yield from job.assembler.add(item.records, self._engine.run(item.batch) if good else None)
        self.progress["images"] += len(records)
        self.progress["bad"] += sum(record.status != "ok" for record in records)

    def _finish(self, job: _InWork, end: ShardEnd) -> Outcome:
        outcome = job.attempt.commit(job.assembler, end)
        self.progress["bytes_written"] += outcome.bytes_written
        return outcome

    @staticmethod
    def _fail(job: _InWork, error: BaseException) -> None:
        with suppress(InvalidStateError):  # another stage failed it first
            job.future.set_exception(error)
