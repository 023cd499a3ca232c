"""The extract job: spec -> plan -> store -> shards on Ray -> commit.

`gatehouse extract SPEC.yaml` and `python -m jobs.extract SPEC.yaml` are the same.
"""

from __future__ import annotations

import logging
import sys
import time
import uuid
from collections.abc import Collection, Sequence
from datetime import UTC, datetime

from rich.console import Console

from jobs.beginnings import absolute_sources, log_to_console, warn_of_other_libraries
from jobs.endings import DONE, FAILED, HELD, SET_ASIDE, STOPPED, TOO_MANY_BAD, stop_on_signal
from jobs.report import ProgressReport, show_plan, show_summary
from pipeline import ledger, probe, storage, todo
from pipeline.batches import Assignment
from pipeline.driving import driving
from pipeline.identity import check_same
from pipeline.job import Job
from pipeline.leases import Driver, Held
from pipeline.plan import Plan, held_bytes, make_plan
from pipeline.ray_runner import RayRunner
from pipeline.schedule import JobFailed
from pipeline.serial_runner import SerialRunner
from pipeline.store import StoreError, open_store, read_manifest
from pipeline.trace import Trace
from schemas.layout import RUNS
from schemas.receipts import Manifest, RunRecord
from schemas.spec import ExtractSpec

logger = logging.getLogger("gatehouse")

_OUTCOMES = {
    DONE: "done",
    FAILED: "failed; what is committed stays, the same command goes on from here",
    SET_ASIDE: "done, but some shards were set aside",
    TOO_MANY_BAD: "failed: more bad samples than max_bad_fraction allows",
    STOPPED: "stopped; the same command goes on from here",
    HELD: "stopped: another driver has taken the job over",
}


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
    console = Console()
    log_to_console()
    plan = make_plan(_absolute(spec))

    def what_is_left() -> tuple[Manifest | None, Sequence[Assignment]]:
        return _what_is_left(plan, limit, retry_failed or bool(retry_reasons), retry_reasons)

    manifest, assignments = what_is_left()
    if not assignments and not dry_run:
        return _already_done(console, plan)
    try:
        if dry_run:
            return _run(console, plan, manifest, assignments, limit, None, serial=serial, trace=None)
        storage.check_writable(plan.spec.store)
        spans = None if trace is None else Trace(trace)
        with driving(plan.spec.store, "shared" if share else "exclusive", spec.cluster.lease_ttl_s) as driver:
            manifest, assignments = what_is_left()  # others may have been at work until now
            if not assignments:
                return _already_done(console, plan)
            return _run(console, plan, manifest, assignments, limit, driver, serial=serial, trace=spans)
    except Held as error:
        logger.error("%s", error)
        return HELD
    except JobFailed as error:
        logger.error("%s", error)
        return FAILED
    except KeyboardInterrupt:
        logger.error("%s", _OUTCOMES[STOPPED])
        return STOPPED


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
    try:
        with (
            stop_on_signal(job.stopping, plan.spec.cluster.stop_grace_s, console),
            ProgressReport(console, rows) as report,
        ):
            runner.run(job, report)
        if job.schedule.by_others:
            logger.info("%d shards were done by other drivers", job.schedule.by_others)
        if job.taken_over:
            logger.error("%s", job.taken_over)
        code = _exit_code(plan, job, job.finish())
    except JobFailed as error:
        logger.error("%s", error)
    except KeyboardInterrupt:
        code = STOPPED
    finally:
        record = RunRecord(
            exit_code=code,
            outcome=_OUTCOMES[code],
            started=started.isoformat(timespec="seconds"),
            seconds=round(time.monotonic() - began, 3),
            images=job.rows,
            counts=dict(job.counts),
            set_aside=job.schedule.set_aside,
            device=runner.device,
            actors=runner.actors,
        )
        _keep(plan.spec.store, record)
        show_summary(console, record, plan.spec.store)
    job.compact()
    return code


def _what_is_left(
    plan: Plan, limit: int | None, retry: bool, reasons: Collection[str]
) -> tuple[Manifest | None, Sequence[Assignment]]:
    """The manifest of the store, None for a store that is not there yet, and what this run has to do."""
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
        index = ledger.read_index(url, manifest, committed)
        assignments += todo.failed(plan.shards, committed, index, reasons or todo.PASSING_REASONS)
    if limit is not None:
        assignments = todo.limited(assignments, limit, plan.spec.input)
    return manifest, assignments


def _already_done(console: Console, plan: Plan) -> int:
    """Nothing is left; the exit code still says what state the store is in."""
    committed = ledger.read_ledger(plan.spec.store)
    states = [committed.shards[shard.id] for shard in plan.shards]
    good, samples = sum(state.good for state in states), sum(state.stop for state in states)
    broken = sum(state.broken for state in states)
    console.print(
        f"nothing to do: of {samples:,} samples in {len(states):,} shards, {good:,} are stored and good"
        + (f"; {broken:,} shards were set aside or not read to their end" if broken else "")
    )
    return _state(plan, committed)


def _exit_code(plan: Plan, job: Job, committed: ledger.Ledger) -> int:
    if job.too_many_bad:
        return TOO_MANY_BAD
    if job.schedule.remaining:
        return HELD if job.taken_over else STOPPED
    return _state(plan, committed)


def _state(plan: Plan, committed: ledger.Ledger) -> int:
    """The exit code that the input's shards call for, as the store has them, whichever run stored them."""
    states = [committed.shards[shard.id] for shard in plan.shards if shard.id in committed.shards]
    if any(set(state.markers[-1].counts) & set(todo.PASSING_REASONS) for state in states):
        return SET_ASIDE
    known = sum(state.stop + state.broken for state in states)
    bad = known - sum(state.good for state in states)
    return TOO_MANY_BAD if bad > plan.spec.max_bad_fraction * known else DONE


def _absolute(spec: ExtractSpec) -> ExtractSpec:
    """Local paths made absolute, since actors work in other folders."""
    backbone = absolute_sources(spec.backbone)
    groups = [
        group.model_copy(
            update={"techniques": [absolute_sources(technique) for technique in group.techniques]}
        )
        for group in spec.groups
    ]
    captions = spec.input.captions and storage.absolute(spec.input.captions)
    selection = spec.selection
    if selection is not None:
        selection = selection.model_copy(update={"url": storage.absolute(selection.url)})
    return spec.model_copy(
        update={
            "store": storage.absolute(spec.store),
            "backbone": backbone,
            "groups": groups,
            "selection": selection,
            "input": spec.input.model_copy(update={"captions": captions}),
        }
    )


def _keep(store: str, record: RunRecord) -> None:
    fs, root = storage.open_fs(store)
    name = f"{record.started.replace(':', '')}-{uuid.uuid4().hex[:8]}.json"
    storage.create(fs, f"{root}/{RUNS}/{name}", record.to_bytes())


if __name__ == "__main__":
    from jobs.cli import main

    sys.argv.insert(1, "extract")
    main()
