"""The extract job: spec -> plan -> store -> shards on Ray -> commit.

`gatehouse extract SPEC.yaml` and `python -m jobs.extract SPEC.yaml` are the same.
"""

from __future__ import annotations

import logging
import sys
import time
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from rich.console import Console

from jobs.beginnings import absolute_spec, log_to_console, warn_of_other_libraries
from jobs.endings import DONE, FAILED, HELD, STOPPED, interrupted_by_term, stop_on_signal
from jobs.outcomes import OUTCOMES, already_done, exit_code, keep, left
from jobs.report import ProgressReport, show_plan, show_summary
from pipeline import ledger, probe, storage, todo
from pipeline.batches import Assignment
from pipeline.driving import driving
from pipeline.identity import check_same
from pipeline.index import read_index
from pipeline.job import Job
from pipeline.leases import Driver, Held
from pipeline.plan import Plan, held_bytes, make_plan
from pipeline.ray_runner import RayRunner
from pipeline.schedule import JobFailed
from pipeline.serial_runner import SerialRunner
from pipeline.store import StoreError, open_store, read_manifest
from pipeline.trace import Trace
from schemas.lease import Mode
from schemas.receipts import Manifest, RunRecord
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")


def run(
    spec: ExtractSpec,
    *,
    limit: int | None = None,
    dry_run: bool = False,
    retry_failed: bool = False,
    retry_reasons: Collection[str] = (),
    serial: bool = False,
    share: bool = False,
    trace: str | None = None,
) -> int:
    """Run the job, and return its exit code.

    Args:
        spec: checked.
        limit: do only so many samples of those that are left.
        dry_run: print the plan, with a probe of two images, and write nothing.
        retry_failed: also do again what failed for reasons that can pass.
        retry_reasons: do again what failed for these reasons instead.
        serial: in this process, without Ray.
        share: work beside other drivers that were told the same, each on shards of its own.
        trace: file or URL for a trace of what every worker's stages did when.

    Raises:
        ValueError: whatever of spec, store or shards makes the job impossible.
    """
    if share and limit is not None:
        raise ValueError("--share and --limit exclude each other: a limit counts the samples of one driver")
    log_to_console()
    try:
        with interrupted_by_term():
            return _begin(
                make_plan(absolute_spec(spec)),
                limit,
                retry_reasons or (todo.PASSING_REASONS if retry_failed else ()),
                dry_run=dry_run,
                serial=serial,
                mode="shared" if share else "exclusive",
                trace=trace,
            )
    except Held as error:
        logger.error("%s%s", error, "" if share else "; drivers that are all given --share work side by side")
        return HELD
    except JobFailed as error:
        logger.error("%s", error)
        return FAILED
    except KeyboardInterrupt:
        logger.error("%s", OUTCOMES[STOPPED])
        return STOPPED


def _begin(
    plan: Plan,
    limit: int | None,
    retry: Collection[str],
    *,
    dry_run: bool,
    serial: bool,
    mode: Mode,
    trace: str | None,
) -> int:
    """Everything but the endings that `run` knows."""
    console = Console()
    manifest, assignments = _what_is_left(plan, limit, retry)
    if dry_run:
        return _run(console, plan, manifest, assignments, limit, None, serial=serial, trace=None)
    if not assignments:
        return already_done(console, plan)
    storage.check_writable(plan.spec.store)
    with driving(plan.spec.store, mode, plan.spec.cluster.lease_ttl_s) as driver:
        manifest, assignments = _what_is_left(plan, limit, retry)  # others may have been at work until now
        if not assignments:
            return already_done(console, plan)
        spans = None if trace is None else Trace(trace)
        return _run(console, plan, manifest, assignments, limit, driver, serial=serial, trace=spans)


def _run(
    console: Console,
    plan: Plan,
    manifest: Manifest | None,
    assignments: Sequence[Assignment],
    limit: int | None,
    driver: Driver | None,
    *,
    serial: bool,
    trace: Trace | None,
) -> int:
    """Everything that needs workers: probe, store, shards, record. Without a driver, only the plan."""
    spec = plan.spec
    if manifest is not None:
        warn_of_other_libraries(
            manifest.libraries,
            plan.manifest.libraries,
            "the store was",
            "new rows are equal within the stated bound only",
        )
    kind = SerialRunner if serial else RayRunner
    runner = kind(spec, manifest or plan.manifest, trace)
    try:
        if manifest is None or driver is None:
            measured = runner.probe(plan.shards[:8])
            held = held_bytes(plan.spec, plan.manifest.rows_per_block, plan.row_bytes)
            if driver is None:
                show_plan(console, plan, measured, runner.actors, held)
            for group, reason in measured.lacking.items():
                logger.warning("group %r fails for each of the first images: %s", group, reason)
            probe.check(measured, spec, held, runner.actors_per_device)
        if driver is None:
            return DONE
        stored = open_store(spec.store, plan.manifest)
        if manifest is None and stored != plan.manifest:  # another job was first, with a layout of its own
            runner.close()
            runner = kind(spec, stored, trace)
        rows = plan.rows * len(assignments) // len(plan.shards)
        return _drive(console, plan, runner, Job(spec, stored, assignments, driver), limit or rows)
    finally:
        runner.close()
        if trace is not None:
            trace.write()


def _drive(console: Console, plan: Plan, runner: RayRunner | SerialRunner, job: Job, rows: int) -> int:
    """Run the job to its exit code, which is kept in the store whatever happens."""
    started, began, code = datetime.now(UTC), time.monotonic(), FAILED
    committed = None
    try:
        with stop_on_signal(job.stopping, plan.spec.cluster.stop_grace_s, console):
            with ProgressReport(console, rows) as report:
                runner.run(job, report)
            committed = job.finish()
        if job.schedule.by_others:
            logger.info("%d shards were done by other drivers", job.schedule.by_others)
        if job.taken_over:
            logger.error("%s", job.taken_over)
        code = exit_code(plan, job, committed)
    except (JobFailed, OSError) as error:
        logger.error("%s", error)
    except KeyboardInterrupt:
        code = STOPPED
    finally:
        record = RunRecord(
            exit_code=code,
            outcome=OUTCOMES[code],
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 3),
            images=job.rows,
            counts=dict(job.counts),
            set_aside=job.schedule.set_aside,
            device=runner.device,
            actors=runner.actors,
            left=job.schedule.remaining if committed is None else left(plan, committed),
        )
        keep(plan.spec.store, record)
        show_summary(console, record, plan.spec.store)
    if committed is not None:
        job.compact(committed.fresh)
    return code


def _what_is_left(
    plan: Plan, limit: int | None, retry: Collection[str]
) -> tuple[Manifest | None, Sequence[Assignment]]:
    """The manifest of the store, None for a store that is not there yet, and what this run has to do: what has no
    outcome yet, and what failed for the reasons in `retry`."""
    url = plan.spec.store
    try:
        manifest = read_manifest(url)
    except StoreError as error:
        if not error.missing:
            raise
        assignments = [Assignment(shard) for shard in plan.shards]
        return None, assignments if limit is None else todo.limited(assignments, limit, plan.spec.input)
    check_same(url, manifest, plan.manifest.identity)
    committed = ledger.read_ledger(url)
    todo.check_unchanged(plan.shards, committed)
    assignments = todo.unfinished(plan.shards, committed)
    if retry:
        bad = read_index(url, manifest, committed, todo.INDEX_COLUMNS, todo.BAD)
        assignments += todo.failed(plan.shards, committed, bad, retry)
    if limit is not None:
        assignments = todo.limited(assignments, limit, plan.spec.input)
    return manifest, assignments


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "extract")
    main()
