"""Runs a caption job on Ray actors, pinned to GPUs or cores. One shard is one task, and an actor has one in hand."""

from __future__ import annotations

import logging
import time
from collections import Counter
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster
from pipeline import device as devices
from pipeline.caption_job import CaptionJob, Report, Task
from pipeline.caption_shards import CaptionWorker, Outcome, Preview
from pipeline.schedule import MAX_FAILURES, JobFailed
from pipeline.shards import Shard
from schemas.captions import CaptionsManifest, CaptionSpec

logger = logging.getLogger("gatehouse")

_TICK_S = 0.5
_PING_S = 2.0
_WAITING_NOTICE_S = 30.0
_LONGEST_PAUSE_S = 60.0


class CaptionActor:
    """A worker that can be called from afar, pinned to one GPU or some CPU cores."""

    def __init__(self, spec: CaptionSpec, manifest: CaptionsManifest, device: str) -> None:
        self._worker = CaptionWorker(spec, manifest, device)
        self._device = device

    def ready(self) -> tuple[str, str]:
        """The device's model and the node's id, once the model is loaded."""
        return devices.name(self._device), ray.get_runtime_context().get_node_id()

    def caption(self, shard: Shard) -> Outcome:
        """Do a shard."""
        return self._worker.run(shard)

    def preview(self, shard: Shard) -> Preview:
        """The first batch of a shard."""
        return self._worker.preview(shard)

    def progress(self) -> dict[str, float]:
        """Counters since the start; also proves that the actor answers."""
        return dict(self._worker.progress)


@dataclass
class _Slot:
    """One actor and what it has in hand."""

    handle: Any
    ready: Any
    node: str | None = None
    working: bool = False
    """Its model is loaded."""
    task: tuple[Any, Task] | None = None
    ping: Any = None
    pinged: float = 0.0
    moved: float = field(default_factory=time.monotonic)
    """When its counters last changed, or it had nothing to do."""
    progress: dict[str, float] = field(default_factory=dict)


class RayCaptions:
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises."""

    def __init__(self, spec: CaptionSpec, manifest: CaptionsManifest) -> None:
        self._spec, self._manifest = spec, manifest
        self._share = cluster.connect(spec.cluster)
        self.actors, self.device = self._share.actors, self._share.device
        self._slots: list[_Slot] = []
        self._gone: Counter[str] = Counter()
        self._failed_starts = 0
        self._next_start = 0.0

    def preview(self, shard: Shard) -> Preview:
        """The first batch of a shard, on one actor, which then stays; nothing is stored."""
        self._add_slot()
        slot = self._slots[0]
        answer = slot.handle.preview.remote(shard)
        try:
            while not ray.wait([answer], timeout=_WAITING_NOTICE_S)[0]:
                self._say_waiting(slot)
            preview: Preview = ray.get(answer)
        except RayTaskError as error:
            raise cluster.cause(error) from None
        except RayError as error:
            raise JobFailed(f"the first actor did not start: {cluster.in_short(error)}") from error
        return preview

    def run(self, job: CaptionJob, report: Report) -> None:
        """Caption every shard of a job; once it is stopping, wait for those in work as long as the spec allows."""
        stop_at: float | None = None
        while job.schedule.remaining:
            if job.stopping.is_set():
                stop_at = stop_at or time.monotonic() + self._spec.cluster.stop_grace_s
                if time.monotonic() > stop_at or not any(slot.task for slot in self._slots):
                    break
            else:
                self._fill_up(job)
            for slot in list(self._slots):
                self._turn(job, slot)
            report(job, self._progress())
            awaited = [ref for slot in self._slots for ref in (slot.ready, slot.task and slot.task[0]) if ref]
            if awaited:
                ray.wait(awaited, timeout=_TICK_S)
            else:
                time.sleep(_TICK_S)

    def close(self) -> None:
        """Give the actors back, and stop Ray where it was started for this job."""
        for slot in self._slots:
            ray.kill(slot.handle)
        self._slots.clear()
        if self._share.started_here:
            ray.shutdown()

    def _fill_up(self, job: CaptionJob) -> None:
        wanted = min(self.actors, job.schedule.remaining)
        while len(self._slots) < wanted and time.monotonic() >= self._next_start:
            self._add_slot()

    def _add_slot(self) -> None:
        options = {
            "num_cpus": self._spec.cluster.cpus_per_actor,
            "num_gpus": 1 if self._share.device == "cuda" else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "max_concurrency": 2,  # so that it answers while it captions
            "scheduling_strategy": "SPREAD",
        }
        actor: Any = ray.remote(CaptionActor).options(**options)
        handle = actor.remote(self._spec, self._manifest, self._share.device)
        self._slots.append(_Slot(handle, handle.ready.remote()))

    def _turn(self, job: CaptionJob, slot: _Slot) -> None:
        """Take what an actor has done and give it more."""
        try:
            if slot.ready is not None:
                if not _done(slot.ready):
                    self._say_waiting(slot)
                    return
                self.device, slot.node = ray.get(slot.ready)
                slot.ready, slot.working = None, True
            self._collect(job, slot)
            if slot not in self._slots:
                return
            self._ping(slot)
            if slot.task is None and (task := job.next()):
                slot.task = (slot.handle.caption.remote(task.shard), task)
                slot.moved = time.monotonic()
            idle = time.monotonic() - slot.moved
            if slot.task is not None and idle > self._spec.cluster.stall_timeout_s:
                self._bury(job, slot, f"no progress for {idle:.0f} s", blame=True)
        except RayError as error:
            self._bury(job, slot, cluster.in_short(error), blame=not cluster.node_to_blame(slot.node, error))

    def _collect(self, job: CaptionJob, slot: _Slot) -> None:
        """Take an outcome, or what the shard raised; an actor's death passes through."""
        if slot.task is None or not _done(slot.task[0]):
            return
        ref, task = slot.task
        try:
            outcome: Outcome = ray.get(ref)
        except RayTaskError as error:
            slot.task = None
            found = cluster.cause(error)
            if cluster.out_of_memory(found):
                size = self._spec.model.batch_size
                raise JobFailed(f"out of memory at model.batch_size {size} ({found}); lower it") from None
            job.failed(task, f"{type(found).__name__}: {found}")
            if not isinstance(found, OSError):  # the actor may be what is broken
                self._forget(slot)
            return
        slot.task, self._failed_starts = None, 0
        job.succeeded(task, outcome)

    def _ping(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.ping is None and now - slot.pinged > _PING_S:
            slot.ping, slot.pinged = slot.handle.progress.remote(), now
        elif slot.ping is not None and _done(slot.ping):
            progress = ray.get(slot.ping)
            slot.ping = None
            if progress != slot.progress:
                slot.progress, slot.moved = progress, now

    def _bury(self, job: CaptionJob, slot: _Slot, why: str, *, blame: bool) -> None:
        """Forget a dead actor; its shard is done again, by another."""
        self._forget(slot)
        logger.warning("an actor died: %s", why)
        if not slot.working and blame:
            self._failed_starts += 1
            self._next_start = time.monotonic() + min(_LONGEST_PAUSE_S, 2.0**self._failed_starts)
            if self._failed_starts >= MAX_FAILURES and not any(other.working for other in self._slots):
                raise JobFailed(f"actors do not start: {why}")
        if slot.task is not None:
            if blame:
                job.failed(slot.task[1], f"its worker died: {why}")
            else:
                job.schedule.interrupted(slot.task[1])

    def _say_waiting(self, slot: _Slot) -> None:
        if time.monotonic() - slot.moved > _WAITING_NOTICE_S and not _done(slot.ready):
            slot.moved = time.monotonic()
            need = cluster.needs(self._spec.cluster, self._share.device)
            logger.info("waiting for an actor (%s on one node) to start; free now: %s", need, cluster.free())

    def _forget(self, slot: _Slot) -> None:
        self._slots.remove(slot)
        ray.kill(slot.handle)  # a dead one may only have been out of reach, and must not keep its GPU
        self._gone.update(slot.progress)

    def _progress(self) -> dict[str, float]:
        total = Counter(self._gone)
        for slot in self._slots:
            total.update(slot.progress)
        return dict(total)


def _done(ref: Any) -> bool:
    return bool(ray.wait([ref], timeout=0, fetch_local=False)[0])
