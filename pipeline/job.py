"""One run over a store: hands out tasks, takes outcomes, sets aside what fails too often. Runners drive it."""

from __future__ import annotations

import logging
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor

from pipeline import arrays, claims, ledger, storage, todo
from pipeline.attempt import Attempt, Outcome
from pipeline.batches import Assignment, ShardEnd
from pipeline.blocks import BlockAssembler
from pipeline.leases import Driver, Held
from pipeline.shards import BadShard
from pipeline.sharing import make_schedule
from pipeline.worker import Task
from schemas.receipts import Manifest, Marker
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")
Report = Callable[[dict[str, float]], None]
"""Takes the counters of all workers together."""

_ENOUGH_TO_JUDGE = 1000  # rows after which too large a share of bad ones ends the job early
_PATIENCE_S = 600.0  # with a store that does not answer the driver; workers' own requests fail on their own
_COMPACT_EVERY = 256  # commits of this driver's own


class Job:
    """The driver's side of a run, the same for every runner.

    Args:
        spec: of the job.
        manifest: of its store, whose arrays exist.
        assignments: what is left to do.
        driver: of the run; None to work whatever others do on the store.
    """

    def __init__(
        self,
        spec: ExtractSpec,
        manifest: Manifest,
        assignments: Sequence[Assignment],
        driver: Driver | None = None,
    ) -> None:
        self.spec, self.manifest = spec, manifest
        self.schedule = make_schedule(spec.store, assignments, driver)
        self.counts: Counter[str] = Counter()
        """Index records of this run by reason, `ok` for none."""
        self.rows = 0
        """Samples of this run; `counts` also holds records that speak of a shard as such."""
        self.too_many_bad = False
        """The job stops early: the share of bad samples is above the spec's bound, with enough of them seen."""
        self.stopping = threading.Event()
        """Set to hand out nothing more."""
        self.taken_over: Held | None = None
        """Says which other driver has taken the job over, after this one had been silent for too long."""
        self._failed: list[tuple[Task, str, str]] = []
        self._unreachable_since: float | None = None
        self._fresh: list[Marker] = []
        """Committed by this run, and not compacted yet."""
        fs, root = storage.open_fs(spec.store)
        # Several drivers begin apart, since each extent that is claimed already costs a request.
        beside = len(driver.others()) if driver else 0
        self._hint = claims.next_free(fs, root) + beside * len(assignments)
        self._rows_ready = (self._hint + len(assignments)) * manifest.rows_per_extent
        if spec.output.maps:
            arrays.ensure_rows(spec.store, manifest, self._rows_ready)

    @property
    def finished(self) -> bool:
        """Whether no task will be handed out any more."""
        return self.schedule.finished or self.stopping.is_set()

    def next_task(self, *, idle: bool) -> Task | None:
        """A task for a worker, which is idle or has others in hand; None when there is none for it now."""
        assignment = None
        if not self.stopping.is_set():
            try:
                assignment = self.schedule.next(idle=idle)
                self._unreachable_since = None
            except Held as held:
                self.taken_over = held
                self.stopping.set()
            except PermissionError:
                raise
            except OSError as error:
                self._wait_for_store(error)
                return None
        if assignment is None:
            if self.schedule.idle:  # others may be waiting for these
                self.set_aside_failed()
            return None
        self._hint += 1
        return Task(assignment, self._hint - 1, self._rows_ready)

    def succeeded(self, task: Task, outcome: Outcome) -> None:
        """A task's round is decided, by its own attempt or by another's, which may have done less of the shard."""
        self.schedule.succeeded(task.assignment)
        if not outcome.committed:
            fs, root = storage.open_fs(self.spec.store)
            if rest := todo.left_by(fs, root, outcome.marker, task.assignment):
                self.schedule.add(rest)
        self.counts.update(outcome.marker.counts)
        self.rows += outcome.marker.rows
        bad = self.rows - self.counts["ok"]
        if self.rows >= _ENOUGH_TO_JUDGE and bad > self.spec.max_bad_fraction * self.rows:
            self.too_many_bad = True
            self.stopping.set()
        self.set_aside_failed()
        if outcome.committed:
            self._fresh.append(outcome.marker)
            if len(self._fresh) % _COMPACT_EVERY == 0 and self.compact(self._fresh):
                self._fresh = []

    def failed(self, task: Task, reason: str, detail: str, *, suspect: bool) -> None:
        """A task failed, or its worker died; after the last try the shard is set aside."""
        if self.schedule.failed(task.assignment, detail, suspect=suspect):
            self._failed.append((task, reason, detail))
            if self.schedule.done:
                self.set_aside_failed()

    def _wait_for_store(self, error: OSError) -> None:
        """Hand out nothing until the store answers the driver again; what workers have in hand goes on meanwhile.

        Raises:
            OSError: it has not answered for too long.
        """
        now = time.monotonic()
        if self._unreachable_since is None:
            self._unreachable_since = now
            logger.warning("the store does not answer, nothing is handed out until it does: %s", error)
        if now - self._unreachable_since > _PATIENCE_S:
            raise error

    def interrupted(self, task: Task) -> None:
        """A task was given up through no fault of its own."""
        self.schedule.interrupted(task.assignment)

    def set_aside_failed(self) -> None:
        """Commit that some shards could not be done.

        Held back until some shard has succeeded, or nothing else is left: where none does, the fault is not the
        shards', and they must be done by the next run.
        """
        while self._failed:
            task, reason, detail = self._failed.pop()
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
            self.rows += outcome.marker.rows
            if not outcome.committed:  # the last try had committed before it died
                self.schedule.set_aside.remove(task.assignment.shard.id)

    def finish(self) -> ledger.Ledger:
        """Set aside what failed, bring the arrays up to what is committed, and return that.

        What failed is left to whoever has taken the job over, and to the next run where nothing succeeded in this one.
        """
        if not self.taken_over and (self.schedule.done or not self.schedule.remaining):
            self.set_aside_failed()
        committed = ledger.read_ledger(self.spec.store)
        if self.spec.output.maps:  # a driver with an old view may have set their rows back
            last = max((extent for marker in committed.markers for extent in marker.extents), default=-1)
            arrays.ensure_rows(self.spec.store, self.manifest, (last + 1) * self.manifest.rows_per_extent)
        return committed

    def compact(self, markers: Sequence[Marker]) -> bool:
        """Whether a compaction holds them now. Derived data: a failure costs readers time, until it is made up for."""
        try:
            return ledger.compact(self.spec.store, markers)
        except OSError as error:
            logger.warning("compaction failed, to be made up for later: %s", error)
            return False
