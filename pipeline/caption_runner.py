"""Runs a caption job on Ray actors, pinned to GPUs or cores. One shard is one task, and an actor has one in hand."""

from __future__ import annotations

import logging
import time
from dataclasses import dataclass
from typing import Any

import ray
from ray.exceptions import RayError, RayTaskError

from pipeline import cluster
from pipeline import device as devices
from pipeline.actor_pool import ActorPool, Slot, done
from pipeline.caption_job import CaptionJob, Report, Task
from pipeline.caption_shards import CaptionWorker, Outcome, Preview
from pipeline.schedule import JobFailed
from pipeline.shards import Shard
from schemas.captions import CaptionsManifest, CaptionSpec

logger = logging.getLogger("gatehouse")

_TICK_S = 0.5
_PING_S = 2.0


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
class _Slot(Slot):
    """One actor and what it has in hand."""

    task: tuple[Any, Task] | None = None
    pinged: float = 0.0


class RayCaptions:
    """Joins a cluster, or starts Ray on this machine; see `cluster.connect` for what it raises."""

    def __init__(self, spec: CaptionSpec, manifest: CaptionsManifest) -> None:
        self._spec = spec
        # Two calls at once, so that an actor answers while it captions.
        self._pool = ActorPool(spec.cluster, CaptionActor, _Slot, max_concurrency=2)
        self.actors, self.device = self._pool.share.actors, self._pool.share.device
        cluster.warn_of_local_paths([spec.captions, spec.model.source])
        self._arguments = (spec, manifest, self._pool.share.device)

    def preview(self, shard: Shard) -> Preview:
        """The first batch of a shard, on one actor, which then stays; nothing is stored."""
        slot = self._pool.add(*self._arguments)
        try:
            preview: Preview = self._pool.first_answer(slot, slot.handle.preview.remote(shard))
        except RayTaskError as error:
            raise cluster.cause(error) from None
        return preview

    def run(self, job: CaptionJob, report: Report) -> None:
        """Caption every shard of a job; once it is stopping, wait for those in work as long as the spec allows."""
        stop_at: float | None = None
        while job.schedule.remaining:
            if job.stopping.is_set():
                stop_at = stop_at or time.monotonic() + self._spec.cluster.stop_grace_s
                if time.monotonic() > stop_at or not any(slot.task for slot in self._pool.slots):
                    break
            else:
                self._pool.fill_up(min(self.actors, job.schedule.remaining), *self._arguments)
            for slot in list(self._pool.slots):
                self._turn(job, slot)
            report(job, self._pool.progress())
            awaited = [
                ref for slot in self._pool.slots for ref in (slot.ready, slot.task and slot.task[0]) if ref
            ]
            if awaited:
                ray.wait(awaited, timeout=_TICK_S)
            else:
                time.sleep(_TICK_S)

    def close(self) -> None:
        """Give the actors back, and stop Ray where it was started for this job."""
        self._pool.close()

    def _turn(self, job: CaptionJob, slot: _Slot) -> None:
        """Take what an actor has done and give it more."""
        try:
            if slot.ready is not None:
                if not done(slot.ready):
                    self._pool.say_waiting(slot)
                    return
                self._pool.arrived(slot)
                self.device = slot.device or self.device
            self._collect(job, slot)
            if slot not in self._pool.slots:
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
        if slot.task is None or not done(slot.task[0]):
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
                self._pool.forget(slot)
            return
        slot.task = None
        self._pool.start_succeeded()
        job.succeeded(task, outcome)

    def _ping(self, slot: _Slot) -> None:
        now = time.monotonic()
        if slot.ping is None and now - slot.pinged > _PING_S:
            slot.ping, slot.pinged = slot.handle.progress.remote(), now
        elif slot.ping is not None and done(slot.ping):
            progress = ray.get(slot.ping)
            slot.ping = None
            if progress != slot.progress:
                slot.progress, slot.moved = progress, now

    def _bury(self, job: CaptionJob, slot: _Slot, why: str, *, blame: bool) -> None:
        """Forget a dead actor; its shard is done again, by another."""
        self._pool.forget(slot)
        logger.warning("an actor died: %s", why)
        if slot.device is None and blame:
            self._pool.start_failed(why)
        if slot.task is not None:
            if blame:
                job.failed(slot.task[1], f"its worker died: {why}")
            else:
                job.schedule.interrupted(slot.task[1])
