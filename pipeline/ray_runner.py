"""Runs a job on Ray: actors pinned to GPUs or cores, replaced when they die or stall. As little logic as possible.

Ray's own restarts and retries are off: the job owns them, because only it knows which shard may be to blame.
"""

from __future__ import annotations

import logging
import math
import os
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import ray
from ray.exceptions import RayActorError, RayTaskError

from pipeline.actor import ExtractActor
from pipeline.job import Job
from pipeline.probe import Probe
from pipeline.schedule import MAX_FAILURES, JobFailed
from pipeline.shards import Shard
from pipeline.worker import Task
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")
Report = Callable[[dict[str, float]], None]

_TASKS_IN_HAND = 3  # a shard being read, one computing, one being uploaded
_LOCAL_OBJECT_STORE_BYTES = 80 * 2**20  # only receipts pass through it
_TICK_S = 0.5
_WAITING_NOTICE_S = 30.0


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
    answered: float = 0.0
    retired: bool = False
    progress: dict[str, float] = field(default_factory=dict)


class RayRunner:
    """Connects to a cluster, or starts Ray on this machine, and decides devices and number of actors."""

    def __init__(self, spec: ExtractSpec, manifest: Manifest) -> None:
        self._spec, self._manifest = spec, manifest
        self._own_ray = _connect(spec.cluster.address)
        resources = ray.cluster_resources()
        gpus, cpus = int(resources.get("GPU", 0)), int(resources.get("CPU", 1))
        self._kind: str = spec.cluster.device
        if self._kind == "auto":
            self._kind = "cuda" if gpus else "cpu"
        if self._kind == "cuda":
            self.actors = spec.cluster.actors or max(1, gpus)
        else:
            self.actors = spec.cluster.actors or max(1, cpus // spec.cluster.cpus_per_actor)
        nodes = sum(node["Alive"] for node in ray.nodes())
        self.actors_per_device = 1 if self._kind == "cuda" else -(-self.actors // nodes)
        self.device = self._kind
        self._slots: list[_Slot] = []
        self._dead_progress: dict[str, float] = {}
        self._failed_starts = 0
        logger.info(
            "device %s: %d actors on a cluster of %d CPUs and %d GPUs", self._kind, self.actors, cpus, gpus
        )

    def probe(self, shards: Sequence[Shard]) -> Probe:
        """Measure two images on one actor, which then stays."""
        self._add_slot()
        slot = self._slots[0]
        answer = slot.handle.probe.remote(list(shards))
        try:
            while not ray.wait([answer], timeout=_WAITING_NOTICE_S)[0]:
                if not ray.wait([slot.ready], timeout=0)[0]:
                    self._say_waiting()
            probe: Probe = ray.get(answer)
        except RayTaskError as error:
            raise _user_error(error) from None
        except RayActorError as error:
            raise JobFailed(f"the first actor did not start: {_creation_error(error)}") from error
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
            while not job.finished and len(self._slots) < min(self.actors, job.schedule.remaining):
                self._add_slot()
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
        if self._own_ray:
            ray.shutdown()

    def _add_slot(self) -> None:
        cluster = self._spec.cluster
        options = {
            "num_cpus": cluster.cpus_per_actor,
            "num_gpus": 1 if self._kind == "cuda" else 0,
            "max_restarts": 0,
            "max_task_retries": 0,
            "scheduling_strategy": "SPREAD",
        }
        requests = max(1, cluster.max_requests // self.actors)
        actor: Any = ray.remote(ExtractActor).options(**options)
        handle = actor.remote(self._spec, self._manifest, self._kind, requests)
        self._slots.append(_Slot(handle, handle.ready.remote(), time.monotonic()))

    def _hand_out(self, job: Job) -> None:
        for slot in list(self._slots):
            if slot.retired and not slot.tasks:
                self._slots.remove(slot)
                self._forget(slot)
                continue
            while slot.device is not None and not slot.retired and len(slot.tasks) < _TASKS_IN_HAND:
                if any(job.schedule.is_suspect(task.assignment) for task in slot.tasks.values()):
                    break
                task = job.next_task(idle=not slot.tasks)
                if task is None:
                    break
                slot.tasks[slot.handle.extract.remote(task)] = task

    def _collect(self, job: Job) -> None:
        waiting = [
            ref for slot in self._slots for ref in (*slot.tasks, slot.ping, slot.ready) if ref is not None
        ]
        ready, _ = ray.wait(waiting, num_returns=len(waiting), timeout=_TICK_S, fetch_local=False)
        done = set(ready)
        for slot in list(self._slots):
            try:
                self._collect_slot(job, slot, done)
            except RayActorError as error:
                self._bury(job, slot, _creation_error(error), blame=not _node_gone(slot, error))

    def _collect_slot(self, job: Job, slot: _Slot, done: set[Any]) -> None:
        now = time.monotonic()
        if slot.ready is not None:
            if slot.ready not in done:
                if now - slot.started > _WAITING_NOTICE_S:
                    self._say_waiting()
                    slot.started = now
                return
            slot.device, slot.node = ray.get(slot.ready)
            slot.ready, slot.answered, self.device = None, now, slot.device or self._kind
            self._failed_starts = 0
        if slot.ping is None or slot.ping in done:
            if slot.ping is not None:
                slot.progress, slot.answered = ray.get(slot.ping), now
                resident = slot.progress.pop("resident_bytes")
                slot.retired = resident > (self._spec.cluster.max_actor_bytes or math.inf)
            slot.ping = slot.handle.progress.remote()
        elif now - slot.answered > self._spec.cluster.stall_timeout_s:
            self._bury(job, slot, f"no answer for {now - slot.answered:.0f} s", blame=True)
            return
        for ref in [ref for ref in slot.tasks if ref in done]:
            self._settle(job, slot, ref)

    def _settle(self, job: Job, slot: _Slot, ref: Any) -> None:
        task = slot.tasks[ref]
        try:
            outcome = ray.get(ref)
        except RayTaskError as error:
            del slot.tasks[ref]
            cause = _user_error(error)
            if _out_of_memory(cause):
                raise JobFailed(
                    f"{task.assignment.shard.id}: out of memory at batch_size {self._spec.backbone.batch_size}"
                    f" ({cause}); lower backbone.batch_size, at first to {self._spec.backbone.batch_size // 2 or 1}"
                ) from None
            reason = "io-error" if isinstance(cause, OSError) else "worker-error"
            logger.warning("%s: %s: %s", task.assignment.shard.id, reason, cause)
            job.failed(task, reason, f"{type(cause).__name__}: {cause}", suspect=False)
            return
        del slot.tasks[ref]
        job.succeeded(task, outcome)

    def _bury(self, job: Job, slot: _Slot, why: str, *, blame: bool) -> None:
        """Forget a dead actor and put its tasks back; the shards are suspects unless their node went away."""
        self._slots.remove(slot)
        self._forget(slot)
        if slot.device is None:
            self._failed_starts += 1
            if self._failed_starts >= MAX_FAILURES:
                raise JobFailed(f"actors do not start: {why}")
        names = ", ".join(task.assignment.shard.id for task in slot.tasks.values())
        logger.warning(
            "an actor died (%s)%s; its shards are done again", why, f" with {names}" if names else ""
        )
        for task in slot.tasks.values():
            if blame:
                job.failed(task, "worker-died", why, suspect=True)
            else:
                job.interrupted(task)

    def _say_waiting(self) -> None:
        need = f"{self._spec.cluster.cpus_per_actor} CPUs" + (" and 1 GPU" if self._kind == "cuda" else "")
        logger.info("waiting for an actor to start, which needs %s on one node; free now: %s", need, _free())

    def _forget(self, slot: _Slot) -> None:
        ray.kill(slot.handle)  # a dead one may only have been out of reach, and must not keep its GPU
        for key, value in slot.progress.items():
            self._dead_progress[key] = self._dead_progress.get(key, 0) + value

    def _progress(self) -> dict[str, float]:
        total = dict(self._dead_progress)
        for slot in self._slots:
            for key, value in slot.progress.items():
                total[key] = total.get(key, 0) + value
        return total


def _connect(address: str | None) -> bool:
    """Join the cluster, or start one on this machine; True for the latter."""
    if ray.is_initialized():
        return False
    options: dict[str, Any] = {"log_to_driver": False, "logging_level": logging.WARNING}
    alone = address is None and "RAY_ADDRESS" not in os.environ
    if alone:
        options |= {
            "address": "local",
            "include_dashboard": False,
            "object_store_memory": _LOCAL_OBJECT_STORE_BYTES,
            "_node_ip_address": "127.0.0.1",
        }
    else:
        options["address"] = address or "auto"
    ray.init(**options)
    return alone


def _free() -> str:
    free = ray.available_resources()
    return f"{free.get('CPU', 0):g} CPUs, {free.get('GPU', 0):g} GPUs in all"


def _user_error(error: RayTaskError) -> Exception:
    cause = error.cause
    return cause if isinstance(cause, Exception) else error


def _creation_error(error: RayActorError) -> str:
    """The last line of what Ray tells, which is the cause itself."""
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[-1] if lines else type(error).__name__


def _out_of_memory(error: Exception) -> bool:
    return "OutOfMemory" in type(error).__name__ or "DefaultCPUAllocator" in str(error)


def _node_gone(slot: _Slot, error: RayActorError) -> bool:
    """Whether the whole node was lost, preempted perhaps: then no shard is to blame."""
    alive = {node["NodeID"] for node in ray.nodes() if node["Alive"]}
    return getattr(error, "preempted", False) or (slot.node is not None and slot.node not in alive)
