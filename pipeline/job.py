"""One run over a store: hands out tasks, takes outcomes, sets aside what fails too often. Runners drive it."""

from __future__ import annotations

import threading
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import arrays, claims, storage
from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Assignment, ShardEnd
from pipeline.blocks import BlockAssembler
from pipeline.schedule import Schedule
from pipeline.shards import BadShard
from pipeline.worker import Task
from schemas.receipts import Manifest
from schemas.spec import ExtractSpec

_ENOUGH_TO_JUDGE = 1000  # rows after which too large a share of bad ones ends the job early


class Job:
    """The driver's side of a run, the same for every runner.

    Args:
        spec: of the job.
        manifest: of its store, whose arrays exist.
        assignments: what is left to do.
    """

    def __init__(self, spec: ExtractSpec, manifest: Manifest, assignments: Sequence[Assignment]) -> None:
        self.spec, self.manifest = spec, manifest
        self.schedule = Schedule(assignments)
        self.counts: Counter[str] = Counter()
        """Index records of this run by reason, `ok` for none."""
        self.rows = 0
        """Samples of this run; `counts` also holds records that speak of a shard as such."""
        self.stopping = threading.Event()
        """Set to hand out nothing more."""
        fs, root = storage.open_fs(spec.store)
        self._hint = claims.next_free(fs, root)
        self._rows_ready = (self._hint + len(assignments)) * manifest.rows_per_extent
        if spec.output.maps:
            arrays.ensure_rows(spec.store, manifest, self._rows_ready)

    @property
    def finished(self) -> bool:
        """Whether no task will be handed out any more."""
        return self.schedule.finished or self.stopping.is_set()

    @property
    def too_many_bad(self) -> bool:
        """Whether the share of bad samples is above the spec's bound."""
        return self.rows - self.counts["ok"] > self.spec.max_bad_fraction * self.rows

    def next_task(self, *, idle: bool) -> Task | None:
        """A task for a worker, which is idle or has others in hand; None when there is none for it now."""
        assignment = None if self.stopping.is_set() else self.schedule.next(idle=idle)
        if assignment is None:
            return None
        self._hint += 1
        return Task(assignment, self._hint - 1, self._rows_ready)

    def succeeded(self, task: Task, outcome: Outcome) -> None:
        """A task's outcome is durable."""
        self.schedule.succeeded(task.assignment)
        self.counts.update(outcome.marker.counts)
        self.rows += outcome.marker.rows
        if self.rows >= _ENOUGH_TO_JUDGE and self.too_many_bad:
            self.stopping.set()

    def failed(self, task: Task, reason: str, detail: str, *, suspect: bool) -> None:
        """A task failed, or its worker died; after the last try the shard is set aside, in the store and for good."""
        if not self.schedule.failed(task.assignment, detail, suspect=suspect):
            return
        with ThreadPoolExecutor(1) as pool:
            attempt = Attempt(
                self.spec.store,
                self.manifest,
                task.assignment,
                device="",
                hint=task.hint,
                rows_ready=task.rows_ready,
                pool=pool,
            )
            end = ShardEnd(task.assignment.done, True, BadShard(reason, detail))
            outcome = attempt.commit(BlockAssembler([], 1, pooled=False), end)
        self.counts.update(outcome.marker.counts)

    def interrupted(self, task: Task) -> None:
        """A task was given up through no fault of its own."""
        self.schedule.interrupted(task.assignment)
