"""A job whose workers commit at once and compute nothing, and whose driver is timed."""

from __future__ import annotations

import asyncio
import secrets
import time
from collections import defaultdict
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any, ClassVar, TypeVar

import ray

from pipeline.actor import Progress
from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Record, ShardEnd
from pipeline.blocks import BlockAssembler
from pipeline.features import Features
from pipeline.job import Job
from pipeline.ray_runner import RayRunner
from pipeline.worker import Task
from schemas.receipts import Manifest, Marker
from schemas.spec import ExtractSpec

R = TypeVar("R")
_BAD_EVERY = 1000  # one image in so many is bad


class SimulatedActor:
    """Has the methods of `pipeline.actor.ExtractActor` that a run calls."""

    def __init__(self, spec: ExtractSpec, manifest: Manifest, *rest: Any) -> None:
        self._store, self._manifest = spec.store, manifest
        self._pool = ThreadPoolExecutor(4)
        self._done = 0
        self._outcomes: dict[str, list[str | None]] = {
            group: [None] * manifest.rows_per_extent for group in manifest.groups
        }

    async def ready(self) -> tuple[str, str]:
        """As the real one."""
        return "no device", ray.get_runtime_context().get_node_id()

    async def extract(self, task: Task) -> Outcome:
        """Claim rows, store an index of as many records as the shard should have, and commit."""
        return await asyncio.to_thread(self._commit, task)

    def _commit(self, task: Task) -> Outcome:
        attempt = Attempt(
            self._store,
            self._manifest,
            task.assignment,
            device="no device",
            hint=task.hint,
            rows_ready=task.rows_ready,
            pool=self._pool,
        )
        assembler = BlockAssembler([], self._manifest.rows_per_block, pooled=False)
        records = [_record(position) for position in range(self._manifest.rows_per_extent)]
        for _ in assembler.add(records, Features({}, {}, self._outcomes)):
            raise AssertionError("unreachable: there are no arrays")
        self._done += 1
        return attempt.commit(assembler, ShardEnd(len(records), True))

    async def progress(self) -> Progress:
        """As the real one."""
        return Progress("simulated", {"shards": self._done}, 0, [])


class SimulatedRunner(RayRunner):
    """Runs a job on actors that compute nothing."""

    actor: ClassVar[type] = SimulatedActor


class TimedJob(Job):
    """Keeps the seconds that the driver spends in each of its steps; `succeeded` without compactions."""

    def __init__(self, *arguments: Any) -> None:
        super().__init__(*arguments)
        self.seconds: dict[str, float] = defaultdict(float)
        self.longest_compaction = 0.0

    def next_task(self, *, idle: bool) -> Task | None:
        """As in a job."""
        return self._timed("next_task", lambda: super(TimedJob, self).next_task(idle=idle))

    def succeeded(self, task: Task, outcome: Outcome) -> None:
        """As in a job."""
        compaction = self.seconds["compact"]
        self._timed("succeeded", lambda: super(TimedJob, self).succeeded(task, outcome))
        self.seconds["succeeded"] -= self.seconds["compact"] - compaction

    def compact(self, markers: Sequence[Marker]) -> bool:
        """As in a job."""
        began = time.perf_counter()
        done = self._timed("compact", lambda: super(TimedJob, self).compact(markers))
        self.longest_compaction = max(self.longest_compaction, time.perf_counter() - began)
        return done

    def _timed(self, name: str, work: Callable[[], R]) -> R:
        began = time.perf_counter()
        try:
            return work()
        finally:
            self.seconds[name] += time.perf_counter() - began


def _record(position: int) -> Record:
    reason = "undecodable-image" if position % _BAD_EVERY == _BAD_EVERY - 1 else None
    key = f"{position:06d}"
    return Record(
        position, key, reason, height=480, width=640, box=(0, 0, 64, 64), sha256=secrets.token_hex(32)
    )
