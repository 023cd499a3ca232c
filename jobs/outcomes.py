"""What became of an extract job: its exit code, and the record of each run that its store keeps."""

from __future__ import annotations

import logging
import uuid
from datetime import UTC, datetime

from rich.console import Console

from jobs.endings import DONE, FAILED, HELD, SET_ASIDE, STOPPED, TOO_MANY_BAD
from pipeline import ledger, storage, todo
from pipeline.completeness import FINISHED, completeness
from pipeline.job import Job
from pipeline.plan import Plan
from pipeline.reader import FeatureStore
from schemas.layout import RUNS
from schemas.receipts import RunRecord

logger = logging.getLogger("gatehouse")

OUTCOMES = {
    DONE: "done",
    FAILED: "failed; what is committed stays, the same command goes on from here",
    SET_ASIDE: "done, but some shards were set aside",
    TOO_MANY_BAD: "failed: more bad samples than max_bad_fraction allows",
    STOPPED: "stopped; the same command goes on from here",
    HELD: "stopped: another driver has taken the job over",
}
"""Exit codes in words."""


def exit_code(plan: Plan, job: Job, committed: ledger.Ledger) -> int:
    """Of a run that came to its end or was stopped."""
    if job.too_many_bad:
        return TOO_MANY_BAD
    if job.schedule.remaining:
        return HELD if job.taken_over else STOPPED
    return _state(plan, committed)


def already_done(console: Console, plan: Plan) -> int:
    """Nothing is left; the exit code still says what state the store is in.

    That is put on record where the run that did the last of it was killed before it could, or before it had taken its
    leave, so that readers know; not where only a part of the store's input was asked for.
    """
    store = FeatureStore(plan.spec.store)
    committed = store.ledger
    states = [committed.shards[shard.id] for shard in plan.shards]
    good, samples = sum(state.good for state in states), sum(state.stop for state in states)
    broken = sum(state.broken for state in states)
    console.print(
        f"nothing to do: of {samples:,} samples in {len(states):,} shards, {good:,} are stored and good"
        + (f"; {broken:,} shards were set aside or not read to their end" if broken else "")
    )
    code = _state(plan, committed)
    whole_input = store.manifest.spec.get("input") == plan.manifest.spec["input"]
    if code in FINISHED and whole_input and completeness(store).gaps:
        keep(
            plan.spec.store,
            RunRecord(
                exit_code=code,
                outcome=OUTCOMES[code],
                started=datetime.now(UTC).isoformat(timespec="seconds"),
                seconds=0,
                images=0,
                counts={},
                set_aside=[],
                device="",
                actors=0,
            ),
        )
    return code


def left(plan: Plan, committed: ledger.Ledger) -> int:
    """Shards of the input without an outcome, or cut."""
    return sum(not (state := committed.shards.get(shard.id)) or not state.complete for shard in plan.shards)


def _state(plan: Plan, committed: ledger.Ledger) -> int:
    """The exit code that the input's shards call for, as the store has them, whichever run stored them."""
    states = [committed.shards[shard.id] for shard in plan.shards if shard.id in committed.shards]
    if any(set(state.markers[-1].counts) & set(todo.PASSING_REASONS) for state in states):
        return SET_ASIDE
    known = sum(state.stop + state.broken for state in states)
    bad = known - sum(state.good for state in states)
    return TOO_MANY_BAD if bad > plan.spec.max_bad_fraction * known else DONE


def keep(store: str, record: RunRecord) -> None:
    """Put a run on record; where that fails, say so and go on."""
    fs, root = storage.open_fs(store)
    name = f"{record.started.replace(':', '')}-{uuid.uuid4().hex[:8]}.json"
    try:
        storage.create(fs, f"{root}/{RUNS}/{name}", record.to_bytes())
    except OSError as error:  # what ended the run, perhaps; people must see the summary all the same
        logger.warning("no record of this run could be kept: %s", error)
