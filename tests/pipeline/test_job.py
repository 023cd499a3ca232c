"""The driver's bookkeeping against a real store."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline import job as jobs
from pipeline import ledger
from pipeline.batches import Assignment
from pipeline.job import Job
from pipeline.worker import Task
from tests.attempts import Draft, make_store, manifest, shard, store_shard
from tests.faults.harness import spec_of

KEYS = ["a", "b", "c", "d"]


@pytest.fixture
def url(tmp_path: Path) -> str:
    make_store(str(tmp_path / "store"), manifest())
    return str(tmp_path / "store")


def job(url: str, *names: str) -> Job:
    return Job(spec_of(url, "unused"), manifest(), [Assignment(shard(name)) for name in names])


def take(one: Job) -> Task:
    task = one.next_task(idle=True)
    assert task is not None
    return task


def commit(url: str, one: Job, task: Task) -> None:
    draft = Draft(url, manifest(), task.assignment, hint=task.hint)
    draft.write(KEYS)
    one.succeeded(task, draft.commit())


def test_what_a_limited_winner_left_is_done(url: str) -> None:
    """Another driver, with --limit 2, was first: the rest of the shard is not forgotten."""
    one = job(url, "a.tar")
    task = take(one)
    other = Draft(url, manifest(), replace(task.assignment, stop=2))
    other.write(KEYS[:2])
    assert other.commit(complete=False).committed
    commit(url, one, task)
    assert not one.schedule.finished
    assert take(one).assignment == Assignment(shard(), round=1, start=2, done=2)


def test_a_whole_winner_leaves_nothing(url: str) -> None:
    one = job(url, "a.tar")
    task = take(one)
    store_shard(url, manifest(), task.assignment, KEYS)
    commit(url, one, task)
    assert one.schedule.finished


def test_shards_are_set_aside_only_once_another_has_succeeded(url: str) -> None:
    one = job(url, "bad.tar", "good.tar")
    bad = take(one)
    good = take(one)
    for _ in range(2):
        one.failed(bad, "io-error", "reset", suspect=False)
        bad = take(one)
    one.failed(bad, "io-error", "reset", suspect=False)
    assert ledger.read_ledger(url).markers == []
    commit(url, one, good)
    assert ledger.read_ledger(url).shards["bad.tar"].broken
    assert one.counts == {"ok": 4, "io-error": 1} and one.rows == 4


def test_a_worker_that_died_after_its_commit_is_no_failure(url: str) -> None:
    """Its marker was first: what looked like the third death was a success."""
    one = job(url, "good.tar", "late.tar")
    commit(url, one, take(one))
    for _ in range(3):
        late = take(one)
        store_shard(url, manifest(), late.assignment, KEYS)
        one.failed(late, "worker-died", "why", suspect=True)
    assert one.schedule.set_aside == [] and one.rows == 8
    assert not ledger.read_ledger(url).shards["late.tar"].broken


def test_too_large_a_share_of_bad_samples_stops_early(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(jobs, "_ENOUGH_TO_JUDGE", 4)
    one = job(url, "a.tar", "b.tar")
    task = take(one)
    one.succeeded(task, store_shard(url, manifest(), task.assignment, KEYS, {"a": "no-image"}))
    assert one.too_many_bad and one.finished and one.next_task(idle=True) is None


def test_long_jobs_compact_as_they_go(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """A job that is killed often must not leave its readers a hundred thousand small files."""
    monkeypatch.setattr(jobs, "_COMPACT_EVERY", 2)
    one = job(url, *[f"{number}.tar" for number in range(5)])
    while task := one.next_task(idle=True):
        commit(url, one, task)
    committed = ledger.read_ledger(url)
    assert committed.sequence == 1 and len(committed.fresh) == 1
