"""Runs a job on Ray: actors pinned to GPUs or cores, replaced when they die, stall or keep failing.

Ray's own restarts and retries are off: the job owns them, because only it knows which shard may be to blame.
"""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster
from pipeline.actor import ExtractActor
from pipeline.job import Job, Report
from pipeline.probe import Probe
from pipeline.schedule import MAX_FAILURES, JobFailed
from pipeline.shards import Shard
from pipeline.worker import Task
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")

_TASKS_IN_HAND = 3  # a shard being read, one computing, one being uploaded
_TICK_S = 0.5
_WAITING_NOTICE_S = 30.0
_LONGEST_PAUSE_S = 60.0


@dataclass
class _Slot:
    """One actor and what it has in hand."""

    handle: Any
    ready: Any
    started: float
    device: str | None = None
    node: str | None = None
    tasks: dict[Any, Task] = field(default_factory=dict)
    ping: Any = None
    moved: float = 0.0
    """When it last answered with counters that had changed, or had nothing to do."""
    proven: bool = False
    """It has done a shard; until then it gets one at a time."""
    failures: int = 0
    """In a row."""
    retired: bool = False
    """It gets nothing more, and is replaced when its hands are empty."""
    progress: dict[str, float] = field(default_factory=dict)

    def has_room(self, job: Job) -> bool:
        """Whether another task may be put behind those in hand."""
        suspect = any(job.schedule.is_suspect(task.assignment) for task in self.tasks.values())
        room = _TASKS_IN_HAND if self.proven else 1
        return self.device is not None and not self.retired and not suspect and len(self.tasks) < room


class RayRunner:
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises."""

    def __init__(self, spec: ExtractSpec, manifest: Manifest) -> None:
        self._spec, self._manifest = spec, manifest
        self._share = cluster.connect(spec.cluster)
        self.actors, self.actors_per_device = self._share.actors, self._share.actors_per_device
        self.device = self._share.device
        self._slots: list[_Slot] = []
        self._dead_progress: dict[str, float] = {}
        self._failed_starts = 0
        self._next_start = 0.0

    def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images on one actor, which then stays."""
        self._add_slot()
        slot = self._slots[0]
        answer = slot.handle.probe.remote(list(shards))
        try:
            while not ray.wait([answer], timeout=_WAITING_NOTICE_S)[0]:
                self._say_waiting(slot)
            probe: Probe = ray.get(answer)
        except RayTaskError as error:
            found = cluster.cause(error)
            if cluster.out_of_memory(found):
                raise JobFailed(f"no memory for the probe's two images: {found}") from None
            raise found from None
        except RayError as error:
            raise JobFailed(f"the first actor did not start: {cluster.in_short(error)}") from error
        return probe

    def run(self, job: Job, report: Report) -> None:
        """Do every task of a job; returns when none is left, or, once told to stop, after the grace period."""
        stop_at: float | None = None
        while job.schedule.remaining:
            if job.finished and not any(slot.tasks for slot in self._slots):
                break
            if job.stopping.is_set():
                stop_at = stop_at or time.monotonic() + self._spec.cluster.stop_grace_s
                if time.monotonic() > stop_at:
                    break
            self._fill_up(job)
            self._hand_out(job)
            self._collect(job)
            report(self._progress())
        for slot in self._slots:
            for task in slot.tasks.values():
                job.interrupted(task)

    def close(self) -> None:
        """Give the actors back, and stop Ray where it was started for this job."""
        for slot in self._slots:
            ray.kill(slot.handle)
        self._slots.clear()
        if self._share.started_here:
            ray.shutdown()

    def _fill_up(self, job: Job) -> None:
        for slot in [slot for slot in self._slots if slot.retired and not slot.tasks]:
            self._forget(slot)
            if not slot.proven:
                self._start_failed("it did no shard")
        wanted = 0 if job.finished else min(self.actors, job.schedule.remaining)
        while len(self._slots) < wanted and time.monotonic() >= self._next_start:
            self._add_slot()

    def _add_slot(self) -> None:
        options = {
            "num_cpus": self._spec.cluster.cpus_per_actor,
            "num_gpus": 1 if self._share.device == "cuda" else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        requests = max(1, self._spec.cluster.max_requests // self.actors)
        actor: Any = ray.remote(ExtractActor).options(**options)
        handle = actor.remote(self._spec, self._manifest, self._share.device, requests)
        self._slots.append(_Slot(handle, handle.ready.remote(), time.monotonic()))

    def _hand_out(self, job: Job) -> None:
        for slot in self._slots:
            while slot.has_room(job) and (task := job.next_task(idle=not slot.tasks)):
                slot.tasks[slot.handle.extract.remote(task)] = task

    def _collect(self, job: Job) -> None:
        refs = [
            ref for slot in self._slots for ref in (*slot.tasks, slot.ping, slot.ready) if ref is not None
        ]
        if not refs:
            time.sleep(_TICK_S)  # all actors are gone, and the next start waits
            return
        done = set(ray.wait(refs, num_returns=len(refs), timeout=_TICK_S, fetch_local=False)[0])
        for slot in list(self._slots):
            try:
                self._collect_slot(job, slot, done)
            except RayError as error:
                blame = not cluster.node_to_blame(slot.node, error)
                self._bury(job, slot, cluster.in_short(error), blame=blame)

    def _collect_slot(self, job: Job, slot: _Slot, done: set[Any]) -> None:
        now = time.monotonic()
        if slot.ready is not None:
            if slot.ready not in done:
                self._say_waiting(slot)
                return
            slot.device, slot.node = ray.get(slot.ready)
            slot.ready, slot.moved, self.device = None, now, slot.device or self.device
        for ref in [ref for ref in slot.tasks if ref in done]:
            self._settle(job, slot, ref)
        if slot.ping is None or slot.ping in done:
            self._take_progress(slot, now)
        if not slot.tasks:
            slot.moved = now
        elif now - slot.moved > self._spec.cluster.stall_timeout_s:
            self._bury(job, slot, f"no progress for {now - slot.moved:.0f} s", blame=True)

    def _take_progress(self, slot: _Slot, now: float) -> None:
        if slot.ping is not None:
            progress = ray.get(slot.ping)
            resident = progress.pop("resident_bytes")
            slot.retired |= resident > (self._spec.cluster.max_actor_bytes or math.inf)
            if progress != slot.progress:
                slot.progress, slot.moved = progress, now
        slot.ping = slot.handle.progress.remote()

    def _settle(self, job: Job, slot: _Slot, ref: Any) -> None:
        """Take a task's outcome, or what it raised; an actor's death passes through."""
        try:
            outcome = ray.get(ref)
        except RayTaskError as error:
            self._task_failed(job, slot, slot.tasks.pop(ref), cluster.cause(error))
            return
        job.succeeded(slot.tasks.pop(ref), outcome)
        slot.proven, slot.failures, self._failed_starts = True, 0, 0

    def _task_failed(self, job: Job, slot: _Slot, task: Task, error: Exception) -> None:
        """An error may be the actor's: one that is not the storage's, or the second in a row, retires it."""
        shard, batch_size = task.assignment.shard.id, self._spec.backbone.batch_size
        if cluster.out_of_memory(error):
            raise JobFailed(
                f"{shard}: out of memory at batch_size {batch_size} ({error}); lower backbone.batch_size,"
                f" at first to {max(1, batch_size // 2)}"
            )
        reason = "io-error" if isinstance(error, OSError) else "worker-error"
        logger.warning("%s: %s: %s", shard, reason, error)
        slot.failures += 1
        slot.retired |= reason == "worker-error" or slot.failures >= 2
        job.failed(task, reason, f"{type(error).__name__}: {error}", suspect=False)

    def _bury(self, job: Job, slot: _Slot, why: str, *, blame: bool) -> None:
        """Forget a dead actor and put its tasks back; the shards are suspects unless their node went away."""
        self._forget(slot)
        names = ", ".join(task.assignment.shard.id for task in slot.tasks.values())
        logger.warning("an actor died (%s)%s", why, f"; {names} is done again" if names else "")
        if slot.device is None and blame:
            self._start_failed(why)
        for task in slot.tasks.values():
            if blame:
                job.failed(task, "worker-died", why, suspect=True)
            else:
                job.interrupted(task)

    def _start_failed(self, why: str) -> None:
        """Wait longer before each further start; give up only when there is no actor that works."""
        self._failed_starts += 1
        self._next_start = time.monotonic() + min(_LONGEST_PAUSE_S, 2.0**self._failed_starts)
        if self._failed_starts >= MAX_FAILURES and not any(slot.device for slot in self._slots):
            raise JobFailed(f"actors do not start, or do not work: {why}")

    def _say_waiting(self, slot: _Slot) -> None:
        if time.monotonic() - slot.started > _WAITING_NOTICE_S and not ray.wait([slot.ready], timeout=0)[0]:
            slot.started = time.monotonic()
            need = cluster.needs(self._spec.cluster, self._share.device)
            logger.info("waiting for an actor (%s on one node) to start; free now: %s", need, cluster.free())

    def _forget(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        ray.kill(slot.handle)  # a dead one may only have been out of reach, and must not keep its GPU
        for key, value in slot.progress.items():
            self._dead_progress[key] = self._dead_progress.get(key, 0) + value

    def _progress(self) -> dict[str, float]:
        total = dict(self._dead_progress)
        for slot in self._slots:
            for key, value in slot.progress.items():
                total[key] = total.get(key, 0) + value
        return total
