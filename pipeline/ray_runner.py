"""Runs a job on Ray: actors pinned to GPUs or cores, replaced when they die, stall or keep failing."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from typing import Any, ClassVar

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster, logs
from pipeline.actor import ExtractActor, Progress, Watch
from pipeline.actor_pool import ActorPool, Slot
from pipeline.job import Job, Report
from pipeline.metrics import DriverMetrics, Exporter, RestartReason
from pipeline.probe import Probe
from pipeline.schedule import JobFailed
from pipeline.shards import Shard
from pipeline.store import StoreError
from pipeline.trace import Trace, spans_each
from pipeline.worker import Task
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")

_TASKS_IN_HAND = 3  # a shard being read, one computing, one being uploaded
_TICK_S = 0.5
_LAST_SPANS_S = 5.0


@dataclass
class _Slot(Slot):
    """One actor and what it has in hand."""

    tasks: dict[Any, Task] = field(default_factory=dict)
    proven: bool = False
    """It has done a shard; until then it gets one at a time."""
    failures: int = 0
    """In a row."""
    retired: RestartReason | None = None
    """Why it gets nothing more, and is replaced when its hands are empty."""

    def has_room(self, job: Job) -> bool:
        """Whether another task may be put behind those in hand."""
        suspect = any(job.schedule.is_suspect(task.assignment) for task in self.tasks.values())
        room = _TASKS_IN_HAND if self.proven else 1
        return self.device is not None and self.retired is None and not suspect and len(self.tasks) < room


class RayRunner:
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises.

    Args:
        spec: of the job.
        manifest: of its store.
        trace: takes what actors tell of their stages.
    """

    actor: ClassVar[type] = ExtractActor

    def __init__(self, spec: ExtractSpec, manifest: Manifest, trace: Trace | None = None) -> None:
        self._spec, self._trace = spec, trace
        self._pool = ActorPool(spec.cluster, self.actor, _Slot)
        share = self._pool.share
        self.actors, self.actors_per_device, self.device = share.actors, share.actors_per_device, share.device
        shards = [spec.input.shards] if isinstance(spec.input.shards, str) else spec.input.shards
        cluster.warn_of_local_paths([spec.store, spec.backbone.source, *shards])
        requests = max(1, spec.cluster.max_requests // self.actors)
        self._metrics = DriverMetrics(Exporter())
        watch = Watch(0 if trace is None else spans_each(share.actors), logs.wants_json())
        self._arguments = (spec, manifest, share.device, requests, watch)

    def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images on one actor, which then stays."""
        slot = self._pool.add(*self._arguments)
        try:
            probe: Probe = self._pool.first_answer(slot, slot.handle.probe.remote(list(shards)))
        except RayTaskError as error:
            found = cluster.cause(error)
            if cluster.out_of_memory(found):
                raise JobFailed(f"no memory for the probe's two images: {found}") from None
            raise found from None
        return probe

    def run(self, job: Job, report: Report) -> None:
        """Do every task of a job; returns when none is left, or, once told to stop, after the grace period."""
        stop_at: float | None = None
        while job.schedule.remaining:
            if job.finished and not any(slot.tasks for slot in self._pool.slots):
                break
            if job.stopping.is_set():
                stop_at = stop_at or time.monotonic() + self._spec.cluster.stop_grace_s
                if time.monotonic() > stop_at:
                    break
            self._fill_up(job)
            self._hand_out(job)
            self._collect(job)
            self._measure(job)
            report(self._pool.progress())
        for slot in self._pool.slots:
            for task in slot.tasks.values():
                job.interrupted(task)
        self._last_spans()

    def close(self) -> None:
        """Give the actors back, and stop Ray where it was started for this job."""
        self._pool.close()

    def _fill_up(self, job: Job) -> None:
        for slot in [slot for slot in self._pool.slots if slot.retired and not slot.tasks]:
            assert slot.retired is not None
            self._metrics.restarted(slot.retired)
            self._pool.forget(slot)
            if not slot.proven:
                self._pool.start_failed("it did no shard")
        wanted = 0 if job.finished else min(self.actors, job.schedule.remaining)
        self._pool.fill_up(wanted, *self._arguments)

    def _hand_out(self, job: Job) -> None:
        for slot in self._pool.slots:
            while slot.has_room(job) and (task := job.next_task(idle=not slot.tasks)):
                slot.tasks[slot.handle.extract.remote(task)] = task

    def _collect(self, job: Job) -> None:
        refs = [
            ref
            for slot in self._pool.slots
            for ref in (*slot.tasks, slot.ping, slot.ready)
            if ref is not None
        ]
        if not refs:
            time.sleep(_TICK_S)  # all actors are gone, and the next start waits
            return
        done = set(ray.wait(refs, num_returns=len(refs), timeout=_TICK_S, fetch_local=False)[0])
        for slot in list(self._pool.slots):
            try:
                self._collect_slot(job, slot, done)
            except RayError as error:
                lost = cluster.node_to_blame(slot.node, error)
                self._bury(job, slot, cluster.in_short(error), "node-lost" if lost else "died")

    def _collect_slot(self, job: Job, slot: _Slot, done: set[Any]) -> None:
        now = time.monotonic()
        if slot.ready is not None:
            if slot.ready not in done:
                self._pool.say_waiting(slot)
                return
            self._pool.arrived(slot)
            self.device = slot.device or self.device
        for ref in [ref for ref in slot.tasks if ref in done]:
            self._settle(job, slot, ref)
        if slot.ping is None or slot.ping in done:
            self._take_progress(slot, now)
        if not slot.tasks:
            slot.moved = now
        elif now - slot.moved > self._spec.cluster.stall_timeout_s:
            self._bury(job, slot, f"no progress for {now - slot.moved:.0f} s", "stalled")

    def _take_progress(self, slot: _Slot, now: float) -> None:
        if slot.ping is not None:
            progress: Progress = ray.get(slot.ping)
            if progress.resident_bytes > (self._spec.cluster.max_actor_bytes or math.inf):
                slot.retired = slot.retired or "memory"
            if progress.counters != slot.progress:
                slot.progress, slot.moved = progress.counters, now
            if self._trace is not None:
                self._trace.take(progress.worker, progress.spans)
        slot.ping = slot.handle.progress.remote()

    def _settle(self, job: Job, slot: _Slot, ref: Any) -> None:
        """Take a task's outcome, or what it raised; an actor's death passes through."""
        try:
            outcome = ray.get(ref)
        except RayTaskError as error:
            self._task_failed(job, slot, slot.tasks.pop(ref), cluster.cause(error))
            return
        job.succeeded(slot.tasks.pop(ref), outcome)
        slot.proven, slot.failures = True, 0
        self._pool.start_succeeded()

    def _task_failed(self, job: Job, slot: _Slot, task: Task, error: Exception) -> None:
        """An error may be the actor's: one that is not the storage's, or the second in a row, retires it."""
        shard, batch_size = task.assignment.shard.id, self._spec.backbone.batch_size
        if cluster.out_of_memory(error):
            raise JobFailed(
                f"{shard}: out of memory at batch_size {batch_size} ({error}); free memory, or take a larger device,"
                " and start again; or begin another store with a lower backbone.batch_size, at first"
                f" {max(1, batch_size // 2)}, since a store keeps to one"
            )
        if isinstance(error, StoreError):  # what this node does would be lost, and nobody would miss it
            raise JobFailed(str(error))
        reason = "io-error" if isinstance(error, OSError) else "worker-error"
        logger.warning("%s: %s: %s", shard, reason, error, extra={"shard": shard, "reason": reason})
        slot.failures += 1
        if reason == "worker-error" or slot.failures >= 2:
            slot.retired = "failing"
        job.failed(task, reason, f"{type(error).__name__}: {error}", suspect=False)

    def _bury(self, job: Job, slot: _Slot, why: str, reason: RestartReason) -> None:
        """Forget a dead actor and put its tasks back; the shards are suspects unless their node went away."""
        self._metrics.restarted(reason)
        self._pool.forget(slot)
        blame, shards = reason != "node-lost", [task.assignment.shard.id for task in slot.tasks.values()]
        again = f"; {', '.join(shards)} is done again" if shards else ""
        logger.warning("an actor died (%s)%s", why, again, extra={"shards": shards, "reason": reason})
        if slot.device is None and blame:
            self._pool.start_failed(why)
        for task in slot.tasks.values():
            if blame:
                job.failed(task, "worker-died", why, suspect=True)
            else:
                job.interrupted(task)

    def _measure(self, job: Job) -> None:
        """Keep the driver's metrics up to date."""
        working = sum(slot.device is not None for slot in self._pool.slots)
        self._metrics.update(
            starting=len(self._pool.slots) - working,
            working=working,
            left=job.schedule.remaining,
            done=job.schedule.done,
            set_aside=len(job.schedule.set_aside),
        )

    def _last_spans(self) -> None:
        """Of actors that answer in time; the last shards end between two answers."""
        if self._trace is None:
            return
        working = [slot for slot in self._pool.slots if slot.device is not None]
        asked = [
            slot.ping for slot in working if slot.ping is not None
        ]  # answers that nobody has looked at yet
        refs = [*asked, *(slot.handle.progress.remote() for slot in working)]
        done, _ = ray.wait(refs, num_returns=len(refs), timeout=_LAST_SPANS_S) if refs else ([], [])
        for ref in done:
            with suppress(RayError):
                progress: Progress = ray.get(ref)
                self._trace.take(progress.worker, progress.spans)
